// What the generated step of a graph is made of, beside its own loops; see source.py.
//
// Two loops do nearly all the work of a layer, both with the vector in the direction of a row of
// cells: `combine` (each output a weighted sum of rows: layers, and their transposes) and
// `correlate` (each weight's gradient the sum over all cells of a product of two planes).
//
// Real is what is computed in where floats are too short, Store what numbers are kept in; gradients
// are floats.

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, MOST = 9;  // of a vector; outputs whose sums fit the registers
#elif defined(__AVX__)
constexpr int BYTES = 32, MOST = 4;
#else
constexpr int BYTES = 16, MOST = 4;
#endif
constexpr int ALONG = 3;  // vectors of a row that are summed up together

// A row is as many cells as a multiple of this. Behind it comes a margin as long: what its first
// and last number hold is seen beyond the border of this row and of the next.
constexpr int PAD = 16;
constexpr int STRIP = 8;  // rows whose gradients are worked on together, while they are in cache

template <typename T>
struct Lanes {
    typedef T Vector __attribute__((vector_size(BYTES)));
    static constexpr int COUNT = BYTES / sizeof(T);
};
typedef Lanes<float>::Vector Vector;
constexpr int LANES = Lanes<float>::COUNT;

// Vectors are not aligned in a std::vector, unless they are in this.
struct Sum {
    Vector lanes;
};

template <typename To, typename From>
inline typename Lanes<To>::Vector load(const From* p) {
    typedef From Part __attribute__((vector_size(Lanes<To>::COUNT * sizeof(From))));
    Part part;
    std::memcpy(&part, p, sizeof part);
    if constexpr (std::is_same<To, From>::value)
        return part;
    else
        return __builtin_convertvector(part, typename Lanes<To>::Vector);
}
template <typename To, typename V>
inline void store(To* p, V v) {
    typedef To Part __attribute__((vector_size(sizeof(V) / sizeof(v[0]) * sizeof(To))));
    const Part part = __builtin_convertvector(v, Part);
    std::memcpy(p, &part, sizeof part);
}

// The planes that one loop works on never overlap, which the compiler cannot know.
#define EACH(begin, end) _Pragma("GCC ivdep") for (int x = begin; x < end; x++)

// Rows of planes. Row y of all planes lies together, unless `plane` says otherwise.
template <typename T>
struct View {
    T* base;
    long plane, row;
    T* at(int number, int y) const { return base + number * plane + y * row; }
    View below(int y) const { return {base - y * row, plane, row}; }  // whose row y is row 0 of this
};

// Planes with a margin of `beyond` rows, all zero at first.
template <typename T>
struct Planes {
    long count, stride, beyond;
    std::vector<Sum> numbers;
    Planes(int count, int rows, long stride, int beyond)
        : count(count), stride(stride), beyond(beyond),
          numbers((size_t(count) * (rows + 2 * beyond) * stride + 2 * PAD) * sizeof(T) / sizeof(Sum) + 1) {}
    View<T> view(bool moving = true) {
        T* first = reinterpret_cast<T*>(numbers.data()) + PAD + beyond * count * stride;
        return {first, stride, moving ? count * stride : 0};
    }
};

// A strip of rows of each plane, one row right behind the other, so that no width leaves a part of a
// vector unused but at the end. What lies there is anything.
template <typename T>
struct Strips {
    long width, area;
    std::vector<Sum> numbers;
    Strips(int count, int width)
        : width(width), area((STRIP * width + PAD - 1) / PAD * PAD + PAD),
          numbers(count * area * sizeof(T) / sizeof(Sum) + 1) {}
    View<T> view() { return {reinterpret_cast<T*>(numbers.data()), area, width}; }
};

// ---- formats: from a number in last bits to a code ----

inline float bit(bool b) { return b ? 1.0f : 0.0f; }
template <typename T>
inline T smaller(T a, T b) {
    return a < b ? a : b;
}
template <typename T>
inline T larger(T a, T b) {
    return a > b ? a : b;
}
template <typename T>
inline T to_TRN(T x) {
    return std::floor(x);
}
template <typename T>
inline T to_TRN_ZERO(T x) {
    return std::trunc(x);
}
template <typename T>
inline T to_RND(T x) {
    return std::floor(x + T(0.5));
}
template <typename T>
inline T to_RND_MIN_INF(T x) {
    return std::ceil(x - T(0.5));
}
template <typename T>
inline T to_RND_ZERO(T x) {
    return x < 0 ? to_RND(x) : to_RND_MIN_INF(x);
}
template <typename T>
inline T to_RND_INF(T x) {
    return x < 0 ? to_RND_MIN_INF(x) : to_RND(x);
}
template <typename T>
inline T to_RND_CONV(T x) {
    const T up = to_RND(x), odd = up - 2 * std::floor(up * T(0.5));
    return up - (up - x == T(0.5) ? odd : 0);
}
template <typename T>
inline T into(T code, T low, T high) {
    return smaller(larger(code, low), high);
}
template <typename T>
inline T wrapped(T code, T low, T span, T per_span) {
    return code - span * std::floor((code - low) * per_span);
}

// ---- borders ----

enum Border { ZERO, REPLICATE, WRAP, REFLECT };

// Whose number is seen at place i of n, which may be one beyond.
inline int seen_at(Border border, int i, int n) {
    if (i >= 0 && i < n) return i;
    if (border == WRAP) return i < 0 ? n - 1 : 0;
    const int mirrored = i < 0 ? 1 : n - 2;
    return border == REFLECT && n > 1 ? mirrored : i < 0 ? 0 : n - 1;
}

// Write what lies beyond the border of a plane. Rows above and below a zero border are zeros that
// nobody writes.
template <typename T>
void surround(View<T> view, int number, Border border, int height, int width) {
    for (int y = 0; y < height; y++) {
        T* row = view.at(number, y);
        row[-1] = border == ZERO ? 0 : row[seen_at(border, -1, width)];
        row[width] = border == ZERO ? 0 : row[seen_at(border, width, width)];
    }
    if (border == ZERO) return;
    for (const int y : {-1, height})
        std::memcpy(view.at(number, y) - 1, view.at(number, seen_at(border, y, height)) - 1,
                    sizeof(T) * (width + 2));
}

// Add to each cell's gradient those of the cells beyond the border that it stands for.
inline void fold(View<float> from, int number, View<float> to, int target, Border border, bool add,
                 int height, int width) {
    for (int y = 0; y < height; y++) {
        const float* in = from.at(number, y);
        float* out = to.at(target, y);
        if (add)
            EACH(0, width) out[x] += in[x];
        else
            EACH(0, width) out[x] = in[x];
    }
    for (int y = -1; y <= height; y++) {
        const float* in = from.at(number, y);
        float* out = to.at(target, seen_at(border, y, height));
        out[seen_at(border, -1, width)] += in[-1];
        out[seen_at(border, width, width)] += in[width];
        if (y < 0 || y == height)
            EACH(0, width) out[x] += in[x];
    }
}

// Whether each row of a plane is zero, the margin included; from row -1.
template <typename T>
void listen(View<T> view, int number, char* silent, int height, int width) {
    for (int y = -1; y <= height; y++) {
        const T* row = view.at(number, y);
        bool zero = true;
        for (int x = -1; x <= width; x++) zero &= row[x] == 0;
        silent[y + 1] = zero;
    }
}

template <typename T>
void trim(T* row, int width, int padded) {
    for (int x = width; x < padded; x++) row[x] = 0;
}

// ---- layers ----

// What a layer sums up along one row, and its number among what it knows weights of.
template <typename T>
struct Tap {
    const T* row;
    int number;
};

// What becomes of the sums of output n before they are written.
struct Keep {
    template <typename V>
    V operator()(int, V sums) const {
        return sums;
    }
};
template <typename Finish, typename T>
struct Lanewise {
    template <typename V>
    V operator()(int n, V sums) const {
        T lanes[Lanes<T>::COUNT];
        std::memcpy(lanes, &sums, sizeof lanes);
        for (T& lane : lanes) lane = Finish::one(n, lane);
        std::memcpy(&sums, lanes, sizeof lanes);
        return sums;
    }
};
template <typename Finish>
struct Bounded {
    template <typename V>
    V operator()(int n, V sums) const {
        return Finish::one(sums, V{} + Finish::bounds[n]);
    }
};

// out[n] = finish(n, bias[n] + sum over k of weight[k's number][n] * tap k), for N outputs, of which
// the first is number `first`, and R vectors.
template <int N, int R, bool ADD, typename T, typename In, typename Out, typename Finish>
inline void combine(int count, const Tap<In>* taps, const T* weight, const T* bias, Out* const* out,
                    int x, int first, Finish finish) {
    typedef typename Lanes<T>::Vector V;
    constexpr int EACH_ONE = Lanes<T>::COUNT;
    V sum[N][R];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[n][r] = V{} + bias[n];
    for (int k = 0; k < count; k++) {
        const T* w = weight + taps[k].number * N;
        V in[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) in[r] = load<T>(taps[k].row + x + r * EACH_ONE);
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            const V all = V{} + w[n];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) sum[n][r] += all * in[r];
        }
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            Out* to = out[n] + x + r * EACH_ONE;
            if constexpr (ADD) sum[n][r] += load<T>(to);
            store(to, finish(first + n, sum[n][r]));
        }
}

// Outputs in blocks whose sums fit the registers; the first BIG blocks have N, the others one less.
template <int OUTPUTS>
struct Blocks {
    static constexpr int COUNT = (OUTPUTS + MOST - 1) / MOST, N = (OUTPUTS + COUNT - 1) / COUNT;
    static constexpr int BIG = OUTPUTS - (N - 1) * COUNT;
    static constexpr int first(int block) { return block * (N - 1) + (block < BIG ? block : BIG); }
    static constexpr int of(int output) {
        return output < BIG * N ? output / N : BIG + (output - BIG * N) / (N > 1 ? N - 1 : 1);
    }
    // Call `f(size, first)` for each.
    template <typename F>
    static void each(F f) {
        for (int b = 0; b < BIG; b++) f(std::integral_constant<int, N>(), first(b));
        if constexpr (N > 1)
            for (int b = BIG; b < COUNT; b++) f(std::integral_constant<int, N - 1>(), first(b));
    }
};

// Weights in the order in which `combine` reads them: [block][input][output in the block].
template <int OUTPUTS, typename T>
struct Layer {
    int inputs;
    std::vector<T> weight, bias;
    explicit Layer(int inputs)
        : inputs(inputs), weight(size_t(inputs) * OUTPUTS), bias(OUTPUTS) {}
    T& operator()(int output, int input) {
        typedef Blocks<OUTPUTS> B;
        const int block = B::of(output), first = B::first(block);
        const int size = block < B::BIG ? B::N : B::N - 1;
        return weight[size_t(inputs) * first + input * size + output - first];
    }
    // out: rows of `padded` cells
    template <bool ADD, typename In, typename Out, typename Finish = Keep>
    void apply(int count, const Tap<In>* taps, Out* const* out, int padded,
               Finish finish = {}) const {
        constexpr int EACH_ONE = Lanes<T>::COUNT;
        int x = 0;
        const auto along = [&](auto vectors) {
            constexpr int R = vectors;
            Blocks<OUTPUTS>::each([&](auto size, int first) {
                constexpr int N = size;
                combine<N, R, ADD>(count, taps, &weight[size_t(inputs) * first], &bias[first],
                                   out + first, x, first, finish);
            });
            x += R * EACH_ONE;
        };
        while (x + ALONG * EACH_ONE <= padded) along(std::integral_constant<int, ALONG>());
        if (x + 2 * EACH_ONE <= padded) along(std::integral_constant<int, 2>());
        if (x < padded) along(std::integral_constant<int, 1>());
    }
};

// A plane: its row 0, how far the next row is, and which rows are zero (from row -1), or null.
template <typename T>
struct Source {
    const T* first;
    long row;
    const char* silent;
    const T* at(int y) const { return first + y * row; }
};

// The taps of row y of a 3x3 layer.
template <typename T>
int taps_around(const Source<T>* sources, int count, int y, Tap<T>* taps) {
    int found = 0;
    for (int i = 0; i < count; i++)
        for (int dy = 0; dy < 3; dy++) {
            if (sources[i].silent && sources[i].silent[y + dy]) continue;
            const T* row = sources[i].at(y + dy - 1);
            for (int dx = 0; dx < 3; dx++) taps[found++] = {row + dx - 1, 9 * i + 3 * dy + dx};
        }
    return found;
}

// sum(n, m) += a[n] * b[m] over some rows, each lane on its own.
// packed: of `a`, [row][vector][N]
template <int N, int M, typename T>
void correlate(const Vector* packed, const Source<T>* b, const int* shift, int top, int rows,
               int padded, Sum* sum, long to_output, long to_input) {
    Vector lanes[N][M];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) lanes[n][m] = Vector{};
    for (int y = top; y < top + rows; y++) {
        if (b[0].silent && b[0].silent[y + 1]) {
            packed += N * (padded / LANES);
            continue;
        }
        const T* row[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) row[m] = b[m].at(y) + shift[m];
        for (int x = 0; x < padded; x += LANES, packed += N) {
            Vector v[M];
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) v[m] = load<float>(row[m] + x);
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) {
                const Vector u = packed[n];
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) lanes[n][m] += u * v[m];
            }
        }
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) sum[n * to_output + m * to_input].lanes += lanes[n][m];
}

// Add the gradient of a layer's weights (OUTPUTS, count, TAPS), then biases, over some rows.
// d: of its outputs, `cells` of a row
template <int OUTPUTS, int TAPS, typename T>
void differentiate(const Source<float>* d, const Source<T>* sources, int count, int top, int rows,
                   int padded, int cells, std::vector<Sum>& scratch, Sum* sum) {
    scratch.resize(size_t(rows) * (padded / LANES) * MOST);
    Sum* bias = sum + long(OUTPUTS) * count * TAPS;
    Blocks<OUTPUTS>::each([&](auto size, int first) {
        constexpr int N = size;
        Vector* packed = &scratch[0].lanes;
        Vector* to = packed;
        for (int y = top; y < top + rows; y++)
            for (int x = 0; x < padded; x += LANES)
                for (int n = 0; n < N; n++, to++) {
                    *to = load<float>(d[first + n].at(y) + x);
                    for (int lane = cells - x; lane < LANES; lane++) (*to)[lane] = 0;
                    bias[first + n].lanes += *to;
                }
        const long to_output = long(count) * TAPS;
        Sum* at = sum + first * to_output;
        if constexpr (TAPS == 9) {
            const int shift[] = {-1, 0, 1};
            for (int i = 0; i < count; i++)
                for (int dy = -1; dy <= 1; dy++) {
                    Source<T> row = sources[i];
                    row.first += dy * row.row;
                    if (row.silent) row.silent += dy;
                    const Source<T> b[] = {row, row, row};
                    correlate<N, 3>(packed, b, shift, top, rows, padded, at + 9 * i + 3 * dy + 3,
                                    to_output, 1);
                }
        } else {
            const int shift[] = {0, 0, 0};
            int i = 0;
            for (; i + 3 <= count; i += 3)
                correlate<N, 3>(packed, sources + i, shift, top, rows, padded, at + i, to_output, 1);
            for (; i < count; i++)
                correlate<N, 1>(packed, sources + i, shift, top, rows, padded, at + i, to_output, 1);
        }
    });
}

// The gradient of what a 3x3 layer of `outputs` reads, by its transposed weights.
// d: of its outputs, zero beyond the border
template <int READ, bool ADD>
void transpose(const Layer<READ, float>& layer, int outputs, const Source<float>* d,
               const View<float>* views, const int* numbers, Border border, int height, int width,
               int padded) {
    std::vector<Tap<float>> taps(9 * outputs);
    float* out[READ];
    const auto row = [&](int y) {
        int count = 0;
        for (int o = 0; o < outputs; o++)
            for (int tap = 0; tap < 9; tap++) {
                const int from = y + 1 - tap / 3;
                if (from < 0 || from >= height) continue;
                taps[count++] = {d[o].at(from) + 1 - tap % 3, 9 * o + tap};
            }
        return count;
    };
    for (int y = 0; y < height; y++) {
        for (int i = 0; i < READ; i++) out[i] = views[i].at(numbers[i], y);
        layer.template apply<ADD>(row(y), taps.data(), out, padded);
        for (int i = 0; i < READ; i++) trim(out[i], width, padded);
    }
    if (border == ZERO) return;
    // Each cell beyond the border stands for one inside, which gets its gradient.
    const int longest = (height > width ? height : width) + 2;
    const int length = (longest + PAD - 1) / PAD * PAD;
    std::vector<float> beyond(long{READ} * length), column(long{outputs} * (length + 4));
    for (int i = 0; i < READ; i++) out[i] = &beyond[size_t(i) * length];
    for (const int y : {-1, height}) {
        layer.template apply<false>(row(y), taps.data(), out, padded);
        for (int i = 0; i < READ; i++) {
            float* to = views[i].at(numbers[i], seen_at(border, y, height));
            EACH(0, width) to[x] += out[i][x];
        }
    }
    for (const int x : {-1, width}) {
        int count = 0;
        for (int o = 0; o < outputs; o++) {
            float* down = &column[size_t(o) * (length + 4)] + 2;  // row 0, two of zeros before it
            for (int y = 0; y < height; y++) down[y] = d[o].at(y)[x < 0 ? 0 : width - 1];
            for (int dy = -1; dy <= 1; dy++)
                taps[count++] = {down - 1 - dy, 9 * o + 3 * (dy + 1) + (x < 0 ? 0 : 2)};
        }
        layer.template apply<false>(count, taps.data(), out, (height + 2 + PAD - 1) / PAD * PAD);
        for (int i = 0; i < READ; i++)
            for (int y = -1; y <= height; y++)
                views[i].at(numbers[i], seen_at(border, y, height))[seen_at(border, x, width)] +=
                    out[i][y + 1];
    }
}

}  // namespace
