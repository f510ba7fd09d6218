/* What a step calls: NAME starts every name, CODE is a type and W what a function's name ends with.
   A function may call those before it. */

/* code / 2**shift, rounded down. What >> makes of a negative number is up to the compiler. */
static inline CODE NAME_floorW(CODE code, int shift)
{
    return (-1 >> 1) == -1 ? code >> shift
        : code < 0 ? -1 - ((-1 - code) >> shift) : code >> shift;
}

/* code / 2**shift, rounded towards zero (TRN_ZERO). */
static inline CODE NAME_trn_zeroW(CODE code, int shift)
{
    return code < 0 ? -(-code >> shift) : code >> shift;
}

/* code / 2**shift, rounded to nearest, ties up (RND); shift is at least 1. */
static inline CODE NAME_rndW(CODE code, int shift)
{
    return NAME_floorW(NAME_floorW(code, shift - 1) + 1, 1);
}

/* code / 2**shift, rounded to nearest, ties down (RND_MIN_INF). */
static inline CODE NAME_rnd_min_infW(CODE code, int shift)
{
    return -NAME_rndW(-code, shift);
}

/* code / 2**shift, rounded to nearest, ties away from zero (RND_INF). */
static inline CODE NAME_rnd_infW(CODE code, int shift)
{
    return code < 0 ? -NAME_rndW(-code, shift) : NAME_rndW(code, shift);
}

/* code / 2**shift, rounded to nearest, ties towards zero (RND_ZERO). */
static inline CODE NAME_rnd_zeroW(CODE code, int shift)
{
    return code < 0 ? NAME_rndW(code, shift) : -NAME_rndW(-code, shift);
}

/* code / 2**shift, rounded to nearest, ties to even (RND_CONV). */
static inline CODE NAME_rnd_convW(CODE code, int shift)
{
    const CODE unit = (CODE)1 << shift, up = NAME_rndW(code, shift);
    return up - ((code & (unit - 1)) == unit / 2 ? up & 1 : 0);
}

/* The smaller of two. */
static inline CODE NAME_minW(CODE a, CODE b)
{
    return a < b ? a : b;
}

/* The larger of two. */
static inline CODE NAME_maxW(CODE a, CODE b)
{
    return a > b ? a : b;
}

/* The nearest code from lowest to highest. */
static inline CODE NAME_clampW(CODE code, CODE lowest, CODE highest)
{
    return code < lowest ? lowest : code > highest ? highest : code;
}

/* What is left of a code when the bits above the range are dropped. */
static inline CODE NAME_wrapW(CODE code, CODE lowest, CODE highest)
{
    const uCODE span = (uCODE)highest - (uCODE)lowest; /* a power of two, minus 1 */
    return lowest + (CODE)(((uCODE)code - (uCODE)lowest) & span);
}

/* The number of which planes first to first + count - 1 are the bits, the highest first. */
static inline CODE NAME_drawW(
    const uint8_t *noise, ptrdiff_t cells, ptrdiff_t cell, int first, int count)
{
    CODE number = 0;
    for (int i = 0; i < count; i++) {
        number = 2 * number + noise[(first + i) * cells + cell];
    }
    return number;
}

/* Which row or column lies there; none is -1: beyond the border are zeros. */
static inline int NAME_beyond_zeroW(int index, int count)
{
    return index < count ? index : -1;
}

/* Which row or column lies there: beyond the border lies the one before it. */
static inline int NAME_beyond_replicateW(int index, int count)
{
    return index < 0 ? 0 : index < count ? index : count - 1;
}

/* Which row or column lies there: beyond the border lies the opposite one. */
static inline int NAME_beyond_wrapW(int index, int count)
{
    return index < 0 ? count - 1 : index < count ? index : 0;
}

/* Which row or column lies there: beyond the border lies the one but last. */
static inline int NAME_beyond_reflectW(int index, int count)
{
    const int inside = index < 0 ? 1 : index < count ? index : count - 2;
    return count > 1 ? inside : 0;
}
