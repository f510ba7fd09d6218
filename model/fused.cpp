// A chunk of one video through the float rule, forward and backward.
//
// It computes what `Rule.forward` computes (rule.py says what and why); tests compare the two.
// Two loops do nearly all the work, both over planes of pixels with the vector in the direction
// of the row: `combine` (each output a weighted sum of inputs: both layers, and their transposes)
// and `correlate` (each weight's gradient the sum over all cells of a product of two planes). What
// a cell sees of the pixels that arrive is nearly always zero; both loops leave out rows of zeros.
//
// The rule's shape comes from the compiler's command line, so that all inner loops have constant
// length: CHANNELS, HIDDEN, PIXELS (of one cell), GATED, BORDER, TRACE_TICK, and one of
// HAS_SAMPLE, HAS_TRACE, ... for each input of the rule.
//
// With QUANTIZED 1 it computes what `FakeQuantRule.forward` computes (fake.py, in quantize): every
// number that is kept sits on the grid of its format. While all sums and products are integers below
// 2**24 of their last bits, floats hold them exactly: then this is the integer rule. With WIDE 1 they
// are doubles, which hold 2**53, in half the speed.

#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
struct Aligned {
    Vector lanes;
};
#if WIDE
typedef double Real;  // of what is summed and multiplied before it is settled
#else
typedef float Real;
#endif

constexpr int TILE = 2 * LANES;  // cells of a row that are worked on together
constexpr int INPUTS =
    HAS_SAMPLE + HAS_TRACE + HAS_VALID + HAS_FRESH + HAS_FLICKER + HAS_INNOVATION + HAS_TRUST + HAS_RECALL;
constexpr int SEEN = CHANNELS + INPUTS * PIXELS;
constexpr int STATE = CHANNELS + 2 * PIXELS;
constexpr int UPDATES = (GATED ? 2 : 1) * CHANNELS;
// What a cell always sees that depends on the learned channels: these, and the last inputs.
constexpr int DERIVED = (HAS_TRUST + HAS_RECALL) * PIXELS;
constexpr int FIRST_DERIVED = SEEN - DERIVED;
// What a cell sees that is zero but where a pixel has just arrived.
constexpr int FIRST_ARRIVAL = CHANNELS + (HAS_SAMPLE + HAS_TRACE) * PIXELS;
constexpr int ARRIVALS = (HAS_VALID + HAS_FRESH + HAS_FLICKER + HAS_INNOVATION) * PIXELS;
enum { ZERO, REPLICATE, WRAP };

// The planes that one loop works on never overlap, which the compiler cannot know.
#define EACH_CELL _Pragma("GCC ivdep") for (int x = 0; x < width; x++)

inline Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }
template <typename T>
inline T clamp(T x, T low, T high) {
    return x < low ? low : x > high ? high : x;
}

// As many sums as a vector has lanes: floats in one register, doubles in two.
template <typename T>
struct Sums {
    typedef T Register __attribute__((vector_size(4 * LANES)));
    typedef float Part __attribute__((vector_size(4 * LANES * 4 / sizeof(T))));
    static constexpr int REGISTERS = sizeof(T) / 4, EACH = LANES / REGISTERS;
    Register part[REGISTERS];
    static Sums all(float value) {
        Sums sums;
#pragma GCC unroll 2
        for (int i = 0; i < REGISTERS; i++) sums.part[i] = Register{} + T(value);
        return sums;
    }
    static Sums of(const float* p) {
        Sums sums;
#pragma GCC unroll 2
        for (int i = 0; i < REGISTERS; i++) {
            Part lanes;
            std::memcpy(&lanes, p + i * EACH, sizeof lanes);
            sums.part[i] = __builtin_convertvector(lanes, Register);
        }
        return sums;
    }
    void add(float weight, const Sums& in) {
#pragma GCC unroll 2
        for (int i = 0; i < REGISTERS; i++) part[i] += T(weight) * in.part[i];
    }
};

// Of a format: what its last bit is worth, both ways round, and its ends, as values.
struct Grid {
    float scale, unit, low, high;
};
// A rule's grids: of its inputs, of its hidden neurons, of its updates, of its learned channels.
constexpr int AT_FLICKER = HAS_SAMPLE + HAS_TRACE + HAS_VALID + HAS_FRESH;
constexpr int AT_INNOVATION = AT_FLICKER + HAS_FLICKER;
constexpr int AT_TRUST = AT_INNOVATION + HAS_INNOVATION;
constexpr int AT_RECALL = AT_TRUST + HAS_TRUST;
constexpr int AT_HIDDEN = INPUTS;
constexpr int AT_UPDATES = AT_HIDDEN + HIDDEN;
constexpr int AT_STATE = AT_UPDATES + UPDATES;
struct Grids {
    const Grid* at;
    float half;  // of a last bit, added before the bits below it are dropped
    float snap(int i, Real x) const { return snap(i, x, half); }
    float snap(int i, Real x, float below) const {
        return float(std::floor(x * at[i].scale + below) * at[i].unit);
    }
    float settle(int i, Real x) const {
        return float(clamp<Real>(std::floor(x * at[i].scale + half) * at[i].unit, at[i].low, at[i].high));
    }
    bool inside(int i, float x) const { return (x > at[i].low) & (x < at[i].high); }
};
// To the grid number i, or else to an interval; and whether a gradient passes: not where a number
// was clipped. `was` is the number before, which a gradient on a grid does not need.
#if QUANTIZED
#define SETTLE(i, x, low, high) grids.settle(i, x)
#define PASSES(i, x, was, low, high) grids.inside(i, x)
#else
#define SETTLE(i, x, low, high) clamp<float>(x, low, high)
#define PASSES(i, x, was, low, high) ((was >= low) & (was <= high))
#endif

// Rows of planes that lie a fixed distance apart.
struct Rows {
    const float* first;
    size_t to_plane, to_row;
};

// How recent a sample is, from 4 to 0, about linear in the logarithm of its age.
inline float recency(float trace) {
    const float fast = 64 * trace - 63, slow = 8 * trace - 7;
    return trace + (slow > 0 ? slow : 0) + 2 * (fast > 0 ? fast : 0);
}

// Planes of H x W numbers inside a margin of one row above and below and one tile left and right.
// Here as everywhere a row of one plane is followed by the same row of the next: what is worked on
// together lies together.
struct Planes {
    int count, stride;
    std::vector<Aligned> numbers;  // so aligned that a vector of the frame is one of the cache
    Planes(int count, int height, int width)
        : count(count), stride((width + TILE - 1) / TILE * TILE + 2 * TILE),
          numbers(size_t(count) * (height + 2) * stride / LANES + 2) {}
    float* at(int plane, int y, int x = 0) {
        return reinterpret_cast<float*>(numbers.data()) +
               (size_t(y + 1) * count + plane) * stride + TILE + x;
    }
    Rows rows(int plane, int y, int x = 0) {
        return {at(plane, y, x), size_t(stride), size_t(count) * stride};
    }
};

// An input of a layer along one row, and its number among the layer's: inputs that are zero all
// along are left out.
struct Input {
    const float* row;
    int number;
};

// out[n] = finish(n, bias[n] + sum over k of weight[k's number][n] * in[k]), for N outputs along one
// row.
template <int N, typename T, typename Finish>
void combine(int count, const Input* in, const float* weight, const float* bias,
             float* const* out, int begin, int end, Finish finish) {
    int x = begin;
    for (; x + LANES < end; x += TILE) {
        Sums<T> left[N], right[N];
        for (int n = 0; n < N; n++) left[n] = right[n] = Sums<T>::all(bias[n]);
        for (int k = 0; k < count; k++) {
            const float* w = weight + in[k].number * N;
            const auto a = Sums<T>::of(in[k].row + x), b = Sums<T>::of(in[k].row + x + LANES);
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) {
                left[n].add(w[n], a);
                right[n].add(w[n], b);
            }
        }
        for (int n = 0; n < N; n++) {
            if (!out[n]) continue;  // a padded output
            finish(n, left[n], out[n] + x);
            finish(n, right[n], out[n] + x + LANES);
        }
    }
    if (x < end) {
        Sums<T> sum[N];
        for (int n = 0; n < N; n++) sum[n] = Sums<T>::all(bias[n]);
        for (int k = 0; k < count; k++) {
            const float* w = weight + in[k].number * N;
            const auto a = Sums<T>::of(in[k].row + x);
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) sum[n].add(w[n], a);
        }
        for (int n = 0; n < N; n++)
            if (out[n]) finish(n, sum[n], out[n] + x);
    }
}

// What becomes of the sums of output n.
struct Keep {
    void operator()(int, const Sums<float>& sum, float* out) const { store(out, sum.part[0]); }
};
struct Rectify {
    void operator()(int, const Sums<float>& sum, float* out) const {
        store(out, sum.part[0] > Vector{} ? sum.part[0] : Vector{});
    }
};
struct Settle {
    const Grids& grids;
    int first;  // grid of output 0
    void operator()(int n, const Sums<Real>& sum, float* out) const {
        Real lanes[LANES];
        std::memcpy(lanes, sum.part, sizeof lanes);
        for (int lane = 0; lane < LANES; lane++) out[lane] = grids.settle(first + n, lanes[lane]);
    }
};

// sum(n, m) += a[n] * b[m], added up over `height` rows, each lane on its own; rows of b that are
// zero are left out.
template <int N, int M, typename Silent, typename Sum>
void correlate(Rows a, Rows b, int height, int width, Silent silent, Sum sum) {
    Vector lanes[N][M];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) lanes[n][m] = Vector{};
    for (int y = 0; y < height; y++) {
        if (silent(y)) continue;
        for (int x = 0; x < width; x += LANES) {
            const float* left = a.first + y * a.to_row + x;
            const float* right = b.first + y * b.to_row + x;
            Vector v[M];
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) v[m] = load(right + m * b.to_plane);
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) {
                const Vector u = load(left + n * a.to_plane);
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) lanes[n][m] += u * v[m];
            }
        }
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) sum(n, m) += lanes[n][m];
}

// Outputs in blocks of at most `most`, the last padded, so that their sums fit the vector registers.
constexpr int blocks(int outputs, int most) { return (outputs + most - 1) / most; }
constexpr int block_size(int outputs, int most) {
    return (outputs + blocks(outputs, most) - 1) / blocks(outputs, most);
}

// Call `f(size, first)` for each block of at most `MOST`; only the last may be smaller.
template <int OUTPUTS, int MOST, typename F>
void over_blocks(F f) {
    constexpr int N = block_size(OUTPUTS, MOST), WHOLE = OUTPUTS / N, REST = OUTPUTS % N;
    for (int b = 0; b < WHOLE; b++) f(std::integral_constant<int, N>(), b * N);
    if constexpr (REST) f(std::integral_constant<int, REST>(), WHOLE * N);
}

// Weights in the order in which `combine` reads them: [block][input][output in the block].
template <int OUTPUTS, typename T = float>
struct Weights {
    // Of each output two sums, beside two inputs, a weight, and one that is spare.
    static constexpr int MOST = (REGISTERS - 4) / 2 * 4 / sizeof(T);
    static constexpr int N = block_size(OUTPUTS, MOST), BLOCKS = blocks(OUTPUTS, MOST);
    int inputs;
    std::vector<float> weight, bias;
    Weights(int inputs)
        : inputs(inputs), weight(BLOCKS * inputs * N), bias(BLOCKS * N) {}
    float& operator()(int output, int input) {
        return weight[(output / N * inputs + input) * N + output % N];
    }
    template <typename Finish = Keep>
    void apply(int count, const Input* in, float* const* out, int begin, int end,
               Finish finish = {}) {
        float* padded[BLOCKS * N] = {};
        for (int o = 0; o < OUTPUTS; o++) padded[o] = out[o];
        for (int b = 0; b < BLOCKS; b++)
            combine<N, T>(count, in, &weight[b * inputs * N], &bias[b * N], padded + b * N, begin,
                          end, [&](int n, const Sums<T>& sum, float* to) {
                              finish(b * N + n, sum, to);
                          });
    }
};

// perceive: [HIDDEN][SEEN][9], then [HIDDEN]; update: [UPDATES][HIDDEN], then [UPDATES].
struct Parameters {
    const float* perceive;
    const float* perceive_bias;
    const float* update;
    const float* update_bias;
    explicit Parameters(const float* all)
        : perceive(all), perceive_bias(perceive + HIDDEN * SEEN * 9),
          update(perceive_bias + HIDDEN), update_bias(update + UPDATES * HIDDEN) {}
};
constexpr int PARAMETERS = HIDDEN * (SEEN * 9 + 1) + UPDATES * (HIDDEN + 1);

struct Video {
    Grids grids;
    int height, width, row;  // row: numbers from one row of a saved plane to the next
    Planes seen, updates;
    std::vector<char> silence;  // ARRIVALS x (height + 2), see `silent`
    Weights<HIDDEN, Real> perceive{SEEN * 9};
    Weights<UPDATES, Real> update{HIDDEN};

    Video(int height, int width, const Parameters& p, Grids grids)
        : grids(grids), height(height), width(width), row((width + TILE - 1) / TILE * TILE),
          seen(SEEN, height, width), updates(UPDATES, height, width),
          silence(ARRIVALS * (height + 2)) {
        for (int h = 0; h < HIDDEN; h++) {
            for (int k = 0; k < SEEN * 9; k++) perceive(h, k) = p.perceive[h * SEEN * 9 + k];
            perceive.bias[h] = p.perceive_bias[h];
        }
        for (int o = 0; o < UPDATES; o++) {
            for (int h = 0; h < HIDDEN; h++) update(o, h) = p.update[o * HIDDEN + h];
            update.bias[o] = p.update_bias[o];
        }
    }

    // Where row y of plane c starts, in an array of `count` planes without a margin.
    size_t at(int count, int c, int y) const { return (size_t(y) * count + c) * row; }
    size_t state_size() const { return at(STATE, 0, height); }
    size_t hidden_size() const { return at(HIDDEN, 0, height); }

    // The sensor writes the input register; `perceived` with a border of one cell around.
    void look(const float* state, const float* sample, const float* valid, float* next) {
        for (int y = 0; y < height; y++) {
            for (int c = 0; c < CHANNELS; c++)
                std::memcpy(seen.at(c, y), state + at(STATE, c, y), 4 * row);
            for (int p = 0; p < PIXELS; p++) {
                const size_t in = (size_t(p) * height + y) * width;
                const size_t last_at = at(STATE, CHANNELS + p, y);
                const size_t age_at = at(STATE, CHANNELS + PIXELS + p, y);
                const float* last = state + last_at;
                const float* age = state + age_at;
                [[maybe_unused]] const float* x0 = state + at(STATE, p, y);
                float* new_last = next + last_at;
                float* new_age = next + age_at;
                int input = CHANNELS + p;
                [[maybe_unused]] auto channel = [&] {
                    float* plane = seen.at(input, y);
                    input += PIXELS;
                    return plane;
                };

#if HAS_FRESH  // like the flicker, by the register as it was
                float* fresh = seen.at(input + (AT_FLICKER - 1) * PIXELS, y);
                EACH_CELL fresh[x] = age[x] < 1 - float(TRACE_TICK) ? valid[in + x] : 0;
#endif
#if HAS_FLICKER
                float* flicker = seen.at(input + AT_FLICKER * PIXELS, y);
                EACH_CELL flicker[x] =
                    age[x] > 0 ? SETTLE(AT_FLICKER, valid[in + x] * (sample[in + x] - last[x]), -1, 1) : 0;
#endif
                EACH_CELL {
                    const float v = valid[in + x], aged = age[x] - float(TRACE_TICK);
                    new_last[x] = v != 0 ? sample[in + x] : last[x];
                    new_age[x] = v != 0 ? 1 - float(TRACE_TICK) : aged > 0 ? aged : 0;
                }
#if HAS_SAMPLE
                std::memcpy(channel(), new_last, 4 * width);
#endif
#if HAS_TRACE
                std::memcpy(channel(), new_age, 4 * width);
#endif
#if HAS_VALID
                std::memcpy(channel(), valid + in, 4 * width);
#endif
#if HAS_FRESH
                channel();
#endif
#if HAS_FLICKER
                channel();
#endif
#if HAS_INNOVATION
                float* innovation = channel();
                EACH_CELL innovation[x] =
                    SETTLE(AT_INNOVATION, valid[in + x] * (new_last[x] - x0[x]), -1, 1);
#endif
#if HAS_TRUST
                const float* doubt = state + at(STATE, PIXELS, y);
                float* trust = channel();
                EACH_CELL trust[x] =
                    SETTLE(AT_TRUST, recency(new_age[x]) - 4 * doubt[x], 0, 1);
#endif
#if HAS_RECALL
                float* recall = channel();
                EACH_CELL recall[x] =
                    SETTLE(AT_RECALL, Real(trust[x]) * (new_last[x] - x0[x]), -1, 1);
#endif
            }
        }
        if (BORDER != ZERO) surround();  // planes start as zeros
        for (int c = 0; c < ARRIVALS; c++)
            for (int y = -1; y <= height; y++) {
                const float* row = seen.at(FIRST_ARRIVAL + c, y);
                bool zero = true;
                for (int x = -1; x <= width; x++) zero &= row[x] == 0;
                silence[c * (height + 2) + y + 1] = zero;
            }
    }

    // Whether row y of a channel of `seen` is zero, margin included.
    bool silent(int c, int y) const {
        const int arrival = c - FIRST_ARRIVAL;
        return arrival >= 0 && arrival < ARRIVALS && silence[arrival * (height + 2) + y + 1];
    }

    // Write what lies beyond the border.
    void surround() {
        for (int c = 0; c < SEEN; c++) {
            for (int y = 0; y < height; y++) {
                *seen.at(c, y, -1) = *seen.at(c, y, BORDER == WRAP ? width - 1 : 0);
                *seen.at(c, y, width) = *seen.at(c, y, BORDER == WRAP ? 0 : width - 1);
            }
            const size_t bytes = 4 * (width + 2);
            std::memcpy(seen.at(c, -1, -1), seen.at(c, BORDER == WRAP ? height - 1 : 0, -1), bytes);
            std::memcpy(seen.at(c, height, -1), seen.at(c, BORDER == WRAP ? 0 : height - 1, -1),
                        bytes);
        }
    }

    // hidden: HIDDEN planes, written.
    void think(int y, float* hidden) {
        Input in[SEEN * 9];
        float* out[HIDDEN];
        int count = 0;
        for (int c = 0; c < SEEN; c++)
            for (int tap = 0; tap < 9; tap++) {
                const int row = y + tap / 3 - 1;
                if (!silent(c, row)) in[count++] = {seen.at(c, row, tap % 3 - 1), 9 * c + tap};
            }
        for (int h = 0; h < HIDDEN; h++) out[h] = hidden + at(HIDDEN, h, y);
#if QUANTIZED
        perceive.apply(count, in, out, 0, width, Settle{grids, AT_HIDDEN});
#else
        perceive.apply(count, in, out, 0, width, Rectify());
#endif
    }

    // How far a gate opens. On grids, updates are settled already.
    float opening(float gate) const {
        return QUANTIZED ? gate : clamp<float>(0.5f + 0.25f * gate, 0, 1);
    }
    float candidate(float u) const { return QUANTIZED ? u : clamp<float>(u, -1, 1); }

    void propose(int y, const float* hidden) {
        Input in[HIDDEN];
        float* out[UPDATES];
        for (int h = 0; h < HIDDEN; h++) in[h] = {hidden + at(HIDDEN, h, y), h};
        for (int o = 0; o < UPDATES; o++) out[o] = updates.at(o, y);
#if QUANTIZED
        update.apply(HIDDEN, in, out, 0, width, Settle{grids, AT_UPDATES});
#else
        update.apply(HIDDEN, in, out, 0, width);
#endif
    }

    void step(const float* state, const float* sample, const float* valid, const float* fired,
              const float* dither, float* hidden, float* next) {
        look(state, sample, valid, next);
        for (int y = 0; y < height; y++) {
            think(y, hidden);
            propose(y, hidden);
            for (int c = 0; c < CHANNELS; c++) {
                const float* old = state + at(STATE, c, y);
                const float* u = updates.at(c, y);
                const float* fire = fired ? fired + y * width : nullptr;
                float* out = next + at(STATE, c, y);
#if GATED
                [[maybe_unused]] const float* below = dither ? dither + y * width : nullptr;
                const float* gate = updates.at(CHANNELS + c, y);
                const auto way = [&](int x) {
                    return Real(opening(gate[x])) * (candidate(u[x]) - old[x]);
                };
#if QUANTIZED
                if (below)
                    EACH_CELL out[x] = old[x] + grids.snap(AT_STATE + c, way(x), below[x]);
                else
                    EACH_CELL out[x] = old[x] + grids.snap(AT_STATE + c, way(x));
#else
                EACH_CELL out[x] = old[x] + way(x);
#endif
#else
                EACH_CELL out[x] = SETTLE(AT_STATE + c, old[x] + u[x], -1, 1);
#endif
                if (fire) EACH_CELL out[x] = fire[x] != 0 ? out[x] : old[x];
            }
        }
    }
};

struct Gradient {
    Video& video;
    const Grids& grids;
    const Parameters& p;
    std::vector<Aligned> sum = std::vector<Aligned>(PARAMETERS);  // as Parameters, lane by lane
    // What of `seen` depends on the learned channels, as outputs of the transposed layer.
    static constexpr int LEARNED = CHANNELS + DERIVED;
    Weights<LEARNED> perceive{HIDDEN * 9};
    Weights<HIDDEN> update{UPDATES};
    Planes dhidden, dseen, dupdates;

    Gradient(Video& video, const Parameters& p)
        : video(video), grids(video.grids), p(p), dhidden(HIDDEN, video.height + 2, video.width + 2),
          dseen(LEARNED, video.height, video.width), dupdates(UPDATES, video.height, video.width) {
        for (int c = 0; c < LEARNED; c++)
            for (int h = 0; h < HIDDEN; h++)
                for (int tap = 0; tap < 9; tap++) {
                    const int source = c < CHANNELS ? c : c - CHANNELS + FIRST_DERIVED;
                    perceive(c, 9 * h + tap) = p.perceive[(h * SEEN + source) * 9 + tap];
                }
        for (int h = 0; h < HIDDEN; h++)
            for (int o = 0; o < UPDATES; o++) update(h, o) = p.update[o * HIDDEN + h];
    }

    // From the gradient of the state after a step to that before; adds to the parameters'.
    // before, after: the states; dstate: CHANNELS planes, read and written.
    void step(const float* before, const float* after, const float* hidden, const float* sample,
              const float* valid, const float* fired, float* dstate, float* scratch) {
        const int height = video.height, width = video.width;
        video.look(before, sample, valid, scratch);
        for (int y = 0; y < height; y++) {
            video.propose(y, hidden);
            backward_update(y, before, fired, dstate);
            backward_hidden(y, hidden);
        }
        accumulate(hidden);
        backward_seen();
        for (int y = 0; y < height; y++) {
            for (int c = 0; c < CHANNELS; c++) {
                const float* d = dseen.at(c, y);
                float* out = dstate + video.at(CHANNELS, c, y);
                EACH_CELL out[x] += d[x];
            }
            for (int q = 0; q < PIXELS; q++) {
                const float* last = after + video.at(STATE, CHANNELS + q, y);
                [[maybe_unused]] const float* age =
                    after + video.at(STATE, CHANNELS + PIXELS + q, y);
                [[maybe_unused]] const float* v = valid + (size_t(q) * height + y) * width;
                const float* x0 = before + video.at(STATE, q, y);
                float* out = dstate + video.at(CHANNELS, q, y);
#if HAS_INNOVATION
                backward_arrivals(AT_INNOVATION, q, y, v, last, x0, out);
#endif
#if HAS_TRUST
                const float* doubt = before + video.at(STATE, PIXELS, y);
                float* ddoubt = dstate + video.at(CHANNELS, PIXELS, y);
                const float* dtrust = dseen.at(CHANNELS + q, y);
                const float* drecall = HAS_RECALL ? dseen.at(CHANNELS + PIXELS + q, y) : dtrust;
                EACH_CELL {
                    const float t = recency(age[x]) - 4 * doubt[x];
                    const float trust = SETTLE(AT_TRUST, t, 0, 1);
                    const float surprise = last[x] - x0[x];
                    const Real was = Real(trust) * surprise;
                    [[maybe_unused]] const float recall = SETTLE(AT_RECALL, was, -1, 1);
                    const bool passes = HAS_RECALL & PASSES(AT_RECALL, recall, was, -1, 1);
                    const float d = passes ? drecall[x] : 0;
                    out[x] -= trust * d;
                    ddoubt[x] -=
                        PASSES(AT_TRUST, trust, t, 0, 1) ? 4 * (dtrust[x] + surprise * d) : 0;
                }
#endif
            }
        }
    }

    // Through an input number `at` that compares the sample that has just arrived with a prediction,
    // of pixel q of each cell of row y; out: the prediction's gradient, added to.
    [[maybe_unused]] void backward_arrivals(int at, int q, int y, const float* valid,
                                            const float* last, const float* prediction,
                                            float* out) {
        for (int x = 0; x < video.width; x++) {
            if (valid[x] == 0) continue;
            const float was = valid[x] * (last[x] - prediction[x]);
            [[maybe_unused]] const float compared = SETTLE(at, was, -1, 1);
            if (PASSES(at, compared, was, -1, 1))
                out[x] -= valid[x] * dseen_at(CHANNELS + at * PIXELS + q, y, x);
        }
    }

    // Gradient of what one cell shows in one channel of `seen`: for the few that have anything to.
    float dseen_at(int c, int y, int x) {
        float sums[9] = {};  // apart, so that none waits for another
        for (const int row : places(y, video.height))
            for (const int column : places(x, video.width)) {
                if (row == NOWHERE || column == NOWHERE) continue;
                for (int h = 0; h < HIDDEN; h++) {
                    const float* weight = p.perceive + (h * SEEN + c) * 9;
                    for (int tap = 0; tap < 9; tap++)
                        sums[tap] +=
                            weight[tap] * *at_dhidden(h, row + 1 - tap / 3, column + 1 - tap % 3);
                }
            }
        float sum = 0;
        for (const float part : sums) sum += part;
        return sum;
    }

    // Where a cell at place i of n along a side is seen: there, and beyond the border.
    static constexpr int NOWHERE = -2;
    static std::array<int, 3> places(int i, int n) {
        if (BORDER == ZERO) return {i, NOWHERE, NOWHERE};
        const bool above = i == (BORDER == WRAP ? n - 1 : 0);
        const bool below = i == (BORDER == WRAP ? 0 : n - 1);
        return {i, above ? -1 : NOWHERE, below ? n : NOWHERE};
    }

    void backward_update(int y, const float* before, const float* fired, float* dstate) {
        const int width = video.width;
        const float* fire = fired ? fired + y * width : nullptr;
        for (int c = 0; c < CHANNELS; c++) {
            const float* old = before + video.at(STATE, c, y);
            const float* u = video.updates.at(c, y);
            float* d = dstate + video.at(CHANNELS, c, y);
            float* du = dupdates.at(c, y);
            float keep[width];
            if (fire)
                EACH_CELL {
                    keep[x] = fire[x] != 0 ? 0 : d[x];
                    d[x] -= keep[x];
                }
#if GATED
            const float* gate = video.updates.at(CHANNELS + c, y);
            float* dgate = dupdates.at(CHANNELS + c, y);
            const int at_gate = AT_UPDATES + CHANNELS + c, at_u = AT_UPDATES + c;
            EACH_CELL {
                [[maybe_unused]] const float open = 0.5f + 0.25f * gate[x];
                const float z = video.opening(gate[x]), to = video.candidate(u[x]);
                const float dz = d[x] * (to - old[x]);
                dgate[x] = PASSES(at_gate, z, open, 0, 1) ? (QUANTIZED ? dz : 0.25f * dz) : 0;
                du[x] = PASSES(at_u, to, u[x], -1, 1) ? d[x] * z : 0;
                d[x] *= 1 - z;
            }
#else
            EACH_CELL {
                const float was = old[x] + u[x];
                [[maybe_unused]] const float moved = SETTLE(AT_STATE + c, was, -1, 1);
                d[x] = PASSES(AT_STATE + c, moved, was, -1, 1) ? d[x] : 0;
                du[x] = !QUANTIZED || grids.inside(AT_UPDATES + c, u[x]) ? d[x] : 0;
            }
#endif
            if (fire) EACH_CELL d[x] += keep[x];
        }
    }

    void backward_hidden(int y, const float* hidden) {
        const int width = video.width;
        Input in[UPDATES];
        float* out[HIDDEN];
        for (int o = 0; o < UPDATES; o++) in[o] = {dupdates.at(o, y), o};
        for (int h = 0; h < HIDDEN; h++) out[h] = at_dhidden(h, y);
        update.apply(UPDATES, in, out, 0, width);
        for (int h = 0; h < HIDDEN; h++) {
            const float* active = hidden + video.at(HIDDEN, h, y);
            EACH_CELL {
                const bool passes = QUANTIZED ? grids.inside(AT_HIDDEN + h, active[x]) : active[x] > 0;
                out[h][x] = passes ? out[h][x] : 0;
            }
        }
    }

    // The transposed layer reads hidden gradients two cells outside the frame: zeros.
    float* at_dhidden(int h, int y, int x = 0) { return dhidden.at(h, y + 1, x); }

    void accumulate(const float* hidden) {
        const int height = video.height, width = video.width;
        Aligned* dperceive = sum.data();
        Aligned* dperceive_bias = dperceive + HIDDEN * SEEN * 9;
        Aligned* dupdate = dperceive_bias + HIDDEN;
        Aligned* dupdate_bias = dupdate + UPDATES * HIDDEN;
        constexpr int STRIP = 8;  // rows whose hidden gradients stay in the nearest cache
        for (int top = 0; top < height; top += STRIP) {
            const int rows = top + STRIP < height ? STRIP : height - top;
            // As many sums as fit the registers, beside one row of a and three of b, or one.
            over_blocks<HIDDEN, (REGISTERS - 4) / 3>([&](auto size, int first) {
                constexpr int N = size;
                const Rows a = dhidden.rows(first, top + 1);
                for (int c = 0; c < SEEN; c++)
                    for (int dy = 0; dy < 3; dy++) {
                        Rows b = video.seen.rows(c, top + dy - 1, -1);
                        b.to_plane = 1;  // the three taps of a row
                        const auto silent = [&](int y) { return video.silent(c, top + dy - 1 + y); };
                        correlate<N, 3>(a, b, rows, width, silent, [&](int n, int dx) -> Vector& {
                            return dperceive[((first + n) * SEEN + c) * 9 + 3 * dy + dx].lanes;
                        });
                    }
            });
            over_blocks<UPDATES, REGISTERS / 2>([&](auto size, int first) {
                constexpr int N = size;
                const Rows a = dupdates.rows(first, top);
                for (int h = 0; h < HIDDEN; h++) {
                    const Rows b{hidden + video.at(HIDDEN, h, top), 0, video.at(HIDDEN, 0, 1)};
                    const auto heard = [](int) { return false; };
                    correlate<N, 1>(a, b, rows, width, heard, [&](int n, int) -> Vector& {
                        return dupdate[(first + n) * HIDDEN + h].lanes;
                    });
                }
            });
            for (int y = top; y < top + rows; y++) {
                for (int h = 0; h < HIDDEN; h++) add_row(dperceive_bias[h], at_dhidden(h, y));
                for (int o = 0; o < UPDATES; o++) add_row(dupdate_bias[o], dupdates.at(o, y));
            }
        }
    }

    void add_row(Aligned& sum, const float* numbers) {
        for (int x = 0; x < video.width; x += LANES) sum.lanes += load(numbers + x);
    }

    void backward_seen() {
        const int height = video.height, width = video.width;
        // A cell beyond the border stands for one inside (or for zero), which gets its gradient.
        for (int y = -1; y <= height; y++) {
            Input in[HIDDEN * 9];
            float* out[LEARNED];
            for (int h = 0; h < HIDDEN; h++)
                for (int tap = 0; tap < 9; tap++)
                    in[9 * h + tap] = {at_dhidden(h, y + 1 - tap / 3, 1 - tap % 3), 9 * h + tap};
            for (int c = 0; c < LEARNED; c++) out[c] = dseen.at(c, y);
            if (BORDER == ZERO && (y < 0 || y == height)) continue;
            perceive.apply(HIDDEN * 9, in, out, BORDER == ZERO ? 0 : -1, width + (BORDER != ZERO));
        }
        if (BORDER == ZERO) return;
        for (int c = 0; c < LEARNED; c++) {
            float* above = dseen.at(c, -1);
            float* below = dseen.at(c, height);
            float* top = dseen.at(c, BORDER == WRAP ? height - 1 : 0);
            float* bottom = dseen.at(c, BORDER == WRAP ? 0 : height - 1);
            for (int x = -1; x <= width; x++) top[x] += above[x];
            for (int x = -1; x <= width; x++) bottom[x] += below[x];
            for (int y = 0; y < height; y++) {
                float* d = dseen.at(c, y);
                d[BORDER == WRAP ? width - 1 : 0] += d[-1];
                d[BORDER == WRAP ? 0 : width - 1] += d[width];
            }
        }
    }
};

}  // namespace

// Arrays are contiguous float32. `row` is the width, rounded up as `padded_width` says.
//   parameters            as Parameters
//   grids, half           as Grids; null and 0 unless QUANTIZED
//   samples, valids       (frames, PIXELS, height, width)
//   fired                 (frames * steps, height, width), or null: every cell, every step
//   dither                the same shape, in [0, 1): added below the last bit of a gated update, in
//                         place of a half; or null. The gradient is the same with and without.
//   states                (frames * steps + 1, height, STATE, row); the first is given
//   hiddens               (frames * steps, height, HIDDEN, row), or null: not kept
extern "C" int padded_width(int width) { return (width + TILE - 1) / TILE * TILE; }

extern "C" void forward(int frames, int steps, int height, int width, const float* parameters,
                        const Grid* grids, float half, const float* samples, const float* valids,
                        const float* fired, const float* dither, float* states, float* hiddens) {
    const Parameters p(parameters);
    Video video(height, width, p, {grids, half});
    std::vector<float> scratch(hiddens ? 0 : video.hidden_size());
    for (int i = 0; i < frames * steps; i++) {
        const size_t frame = size_t(i / steps) * PIXELS * height * width;
        video.step(states + i * video.state_size(), samples + frame, valids + frame,
                   fired ? fired + size_t(i) * height * width : nullptr,
                   dither ? dither + size_t(i) * height * width : nullptr,
                   hiddens ? hiddens + i * video.hidden_size() : scratch.data(),
                   states + (i + 1) * video.state_size());
    }
}

//   dpredictions          (frames, PIXELS, height, width)
//   dparameters           as Parameters, written
extern "C" void backward(int frames, int steps, int height, int width, const float* parameters,
                         const Grid* grids, float half, const float* samples, const float* valids, const float* fired,
                         const float* states, const float* hiddens, const float* dpredictions,
                         float* dparameters) {
    const Parameters p(parameters);
    Video video(height, width, p, {grids, half});
    Gradient gradient(video, p);
    std::vector<float> dstate(video.at(CHANNELS, 0, height)), scratch(video.state_size());
    for (int i = frames * steps - 1; i >= 0; i--) {
        const size_t frame = size_t(i / steps) * PIXELS * height * width;
        if (i % steps == steps - 1)
            for (int q = 0; q < PIXELS; q++)
                for (int y = 0; y < height; y++)
                    EACH_CELL dstate[video.at(CHANNELS, q, y) + x] +=
                        dpredictions[frame + (size_t(q) * height + y) * width + x];
        const float* before = states + i * video.state_size();
        gradient.step(before, before + video.state_size(), hiddens + i * video.hidden_size(),
                      samples + frame, valids + frame,
                      fired ? fired + size_t(i) * height * width : nullptr, dstate.data(),
                      scratch.data());
    }
    for (int i = 0; i < PARAMETERS; i++) {
        dparameters[i] = 0;
        for (int lane = 0; lane < LANES; lane++) dparameters[i] += gradient.sum[i].lanes[lane];
    }
}
