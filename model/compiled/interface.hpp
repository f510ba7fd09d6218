// Arrays are contiguous. A row is `padded` numbers: the width, rounded up to a multiple of PAD; with
// a margin it is PAD more, of which the first number of the array is the last.
//   given      NUMBERS
//   inputs     (frames, height, INPUTS, padded)
//   noise      (frames * steps, height, RANDOMS, padded)
//   states     (frames * steps + 1 or 2, height + 2, CHANNELS, padded + PAD); the first is given
//   saved      (frames * steps or 1, height + 2, SAVED, padded + PAD)
//   keep       whether all states and what is saved are kept, or the last two and one
//   chosen     numbers of channels
//   outputs    (frames, chosen, height, width)
namespace {
struct Arrays {
    int height, padded;
    long stride;
    View<Store> bare(Store* first, int planes, int i) const {
        return {first + long(i) * height * planes * padded, padded, long(planes) * padded};
    }
    template <typename T>
    View<T> with_margin(T* first, int planes, int i) const {
        return {first + (long(i) * (height + 2) + 1) * planes * stride + PAD, stride,
                planes * stride};
    }
};
}  // namespace

extern "C" void forward(int frames, int steps, int height, int width, const Real* given,
                        Store* inputs, Store* noise, Store* states, Store* saved, int keep,
                        const int* chosen, int count, Store* outputs) {
    Video video(height, width, given, false);
    const Arrays arrays{height, video.padded, video.stride};
    video.show(arrays.with_margin(states, CHANNELS, 0));
    for (int i = 0; i < frames * steps; i++) {
        const auto next = arrays.with_margin(states, CHANNELS, keep ? i + 1 : (i + 1) % 2);
        video.forward(arrays.with_margin(states, CHANNELS, keep ? i : i % 2),
                      arrays.bare(inputs, INPUTS, i / steps), arrays.bare(noise, RANDOMS, i), next,
                      arrays.with_margin(saved, SAVED, keep ? i : 0));
        video.show(next);
        if (i % steps == steps - 1)
            for (int c = 0; c < count; c++)
                for (int y = 0; y < height; y++, outputs += width)
                    std::memcpy(outputs, next.at(chosen[c], y), sizeof(Store) * width);
    }
}

//   doutputs   as outputs, floats
//   dgiven     NUMBERS, written
extern "C" void backward(int frames, int steps, int height, int width, const Real* given,
                         Store* inputs, Store* noise, Store* states, Store* saved,
                         const int* chosen, int count, const float* doutputs, float* dgiven) {
    Video video(height, width, given, true);
    const Arrays arrays{height, video.padded, video.stride};
    Planes<float> one(VARYING, height, video.stride, 1), other(VARYING, height, video.stride, 1);
    View<float> dnext = one.view(), dprevious = other.view();
    for (int i = frames * steps - 1; i >= 0; i--) {
        if (i % steps == steps - 1)
            for (int c = 0; c < count; c++) {
                if (VARIES[chosen[c]] < 0) continue;
                const float* d = doutputs + (long(i / steps) * count + c) * height * width;
                for (int y = 0; y < height; y++, d += width) {
                    float* to = dnext.at(VARIES[chosen[c]], y);
                    EACH(0, width) to[x] += d[x];
                }
            }
        video.backward(arrays.with_margin(states, CHANNELS, i),
                       arrays.bare(inputs, INPUTS, i / steps), arrays.bare(noise, RANDOMS, i),
                       arrays.with_margin(saved, SAVED, i), dnext, dprevious);
        std::swap(dnext, dprevious);
    }
    video.write(dgiven);
}
