// Factor 2 with 2 or 4 taps has its own loops (kernels/upfirdn.h); anything else takes the general loop. Sums run over
// filter rows, then columns, uncontracted: one result on every instruction set and thread count.
#include <algorithm>
#include <vector>

#include "_kernels.h"
#include "_upfirdn.h"
#include "simd/isas.h"

namespace edm {
namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// any filter, factor and layout: the formula itself; begin, end count rows (n, c, out_h)
template <typename T>
void general(const FilterTask<T>& task, int64_t begin, int64_t end) {
    const Upfirdn& s = task.s;
    const int64_t sc = s.channels_last ? 1 : s.h * s.w, sw = s.channels_last ? s.x_pitch : 1;
    const int64_t oc = s.channels_last ? 1 : s.out_h * s.out_w, ow = s.channels_last ? s.c : 1;
    for (int64_t line = begin; line < end; ++line) {
        const int64_t i = line % s.out_h, c = line / s.out_h % s.c, n = line / s.out_h / s.c;
        const T* x = static_cast<const T*>(s.x_ptr) + n * s.h * s.w * (s.channels_last ? s.x_pitch : s.c) + c * sc;
        T* y = static_cast<T*>(s.y_ptr) + n * s.c * s.out_h * s.out_w + c * oc + i * s.out_w * ow;
        const int64_t first = s.up ? floor_div(i + s.padding, s.factor) : s.factor * i - s.padding;
        for (int64_t j = 0; j < s.out_w; ++j) {
            const int64_t left = s.up ? floor_div(j + s.padding, s.factor) : s.factor * j - s.padding;
            T sum = T(0);
            for (int64_t a = 0;; ++a) {
                const int64_t r = s.up ? first - a : first + a, ky = s.up ? i + s.padding - s.factor * r : a;
                if (ky >= s.taps) break;
                if (r < 0 || r >= s.h) continue;
                for (int64_t b = 0;; ++b) {
                    const int64_t col = s.up ? left - b : left + b, kx = s.up ? j + s.padding - s.factor * col : b;
                    if (kx >= s.taps) break;
                    if (col >= 0 && col < s.w) sum += x[(r * s.w + col) * sw] * task.f[ky * s.taps + kx];
                }
            }
            y[j * ow] = sum;
        }
    }
}

template <typename T>
int run(const Upfirdn& s, const UpfirdnKernels<T>& kernels, int threads) {
    std::vector<T> f(s.taps * s.taps);
    for (int64_t k = 0; k < s.taps * s.taps; ++k) f[k] = static_cast<const T*>(s.f_ptr)[k] * T(s.gain);
    const FilterTask<T> task{s, f.data()};
    const bool special = s.factor == 2 && (s.taps == 2 || s.taps == 4);
    const auto& filters = s.channels_last ? kernels.last : kernels.planes;
    const auto body = special ? filters[s.up][s.taps == 4] : general<T>;
    // work items: image planes, rows of all channels, or rows of one channel
    const int64_t items = !special ? s.n * s.c * s.out_h : s.channels_last ? s.n * s.out_h : s.n * s.c;
    const int64_t total = s.n * s.c * s.out_h * s.out_w;
    const int64_t grain = total ? std::max<int64_t>(1, 8192 * items / total) : 1;
    parallel_for(items, grain, threads, [&](int64_t begin, int64_t end) { body(task, begin, end); });
    return kOk;
}

}  // namespace

int upfirdn_fwd_cpu(const Upfirdn& s, int isa, int threads) {
    if (s.taps < 1 || s.factor < 1 || s.padding < 0 || !available(isa)) return kBadArgument;
    if (s.n < 0 || s.c < 0 || s.h < 1 || s.w < 1 || s.out_h < 1 || s.out_w < 1) return kBadArgument;
    if (s.channels_last && s.x_pitch < s.c) return kBadArgument;
    if (s.dtype == kFloat32) return run<float>(s, kernels_of(isa).upfirdn_float, threads);
    if (s.dtype == kFloat64) return run<double>(s, kernels_of(isa).upfirdn_double, threads);
    return kBadType;
}

}  // namespace edm
