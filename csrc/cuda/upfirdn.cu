// A thread makes 16 bytes of output: neighbouring channels, whose inputs are 16-byte vectors, too (channels last), or
// neighbouring pixels of a row. Filters of 2 x 2 and 4 x 4 are unrolled; other filters and odd sizes go one by one.
#include "../upfirdn.h"
#include "launch.h"

namespace edm {
namespace {

// the n-th part of i, going from the fastest index to the slowest
__device__ __forceinline__ int64_t take(int64_t& i, int64_t n) {
    const int64_t rest = divided(i, n), part = i - rest * n;
    i = rest;
    return part;
}

// V neighbouring channels of one output (i, j). `x`: the first of these channels of the image, `step` from pixel to
// pixel. K and F: filter size and factor known at compile time, or 0
template <typename T, int V, int K, int F, bool Up>
__device__ __forceinline__ Vec<T, V> sample(const Upfirdn& s, const T* x, int64_t step, int64_t i, int64_t j) {
    using A = typename Accumulator<T>::type;
    const int64_t taps = K ? K : s.taps, factor = F ? F : s.factor;
    const T* f = static_cast<const T*>(s.f_ptr);
    // down: input row = factor i - padding + ky; up: factor row = i + padding - ky, for the ky that divide
    const int64_t qy = Up ? i + s.padding : factor * i - s.padding, qx = Up ? j + s.padding : factor * j - s.padding;
    const int64_t ky0 = Up ? qy % factor : 0, kx0 = Up ? qx % factor : 0, inc = Up ? factor : 1;
    const int64_t r0 = Up ? qy / factor : qy, c0 = Up ? qx / factor : qx, sign = Up ? -1 : 1;
    A sum[V] = {};
#pragma unroll
    for (int64_t a = 0; a < (K ? (Up ? K / F : K) : taps); ++a) {
        const int64_t ky = ky0 + a * inc, r = r0 + sign * a;
        if (ky >= taps || r < 0 || r >= s.h) continue;
#pragma unroll
        for (int64_t b = 0; b < (K ? (Up ? K / F : K) : taps); ++b) {
            const int64_t kx = kx0 + b * inc, col = c0 + sign * b;
            if (kx >= taps || col < 0 || col >= s.w) continue;
            const Vec<T, V> in = load<T, V>(x + (r * s.w + col) * step);
            const A weight = widen(f[ky * taps + kx]) * A(s.gain);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] += widen(in.v[v]) * weight;
        }
    }
    Vec<T, V> y;
#pragma unroll
    for (int v = 0; v < V; ++v) y.v[v] = narrow<T>(sum[v]);
    return y;
}

template <typename T, int V, int K, int F, bool Up>
__global__ void __launch_bounds__(kThreads) _upfirdn_fwd_last(const Upfirdn s) {
    const int64_t total = s.n * s.out_h * s.out_w * (s.c / V), stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; o < total; o += stride) {
        int64_t rest = o;
        const int64_t c = take(rest, s.c / V) * V, j = take(rest, s.out_w), i = take(rest, s.out_h);
        const T* x = static_cast<const T*>(s.x_ptr) + rest * s.h * s.w * s.x_pitch + c;
        store(static_cast<T*>(s.y_ptr) + o * V, sample<T, V, K, F, Up>(s, x, s.x_pitch, i, j));
    }
}

template <typename T, int V, int K, int F, bool Up>
__global__ void __launch_bounds__(kThreads) _upfirdn_fwd(const Upfirdn s) {
    const int64_t total = s.n * s.c * s.out_h * (s.out_w / V), stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; o < total; o += stride) {
        int64_t rest = o;
        const int64_t j = take(rest, s.out_w / V) * V, i = take(rest, s.out_h);
        const T* x = static_cast<const T*>(s.x_ptr) + rest * s.h * s.w;
        Vec<T, V> y;
#pragma unroll
        for (int v = 0; v < V; ++v) y.v[v] = sample<T, 1, K, F, Up>(s, x, 1, i, j + v).v[0];
        store(static_cast<T*>(s.y_ptr) + o * V, y);
    }
}

template <typename T, int V, int K, int F, bool Up>
void start(const Upfirdn& s, void* stream) {
    const int64_t blocks = blocks_for(s.n * s.c * s.out_h * s.out_w / V);
    const auto kernel = s.channels_last ? _upfirdn_fwd_last<T, V, K, F, Up> : _upfirdn_fwd<T, V, K, F, Up>;
    launch(kernel, blocks, kThreads, stream, s);
}

template <typename T, bool Up>
void choose(const Upfirdn& s, void* stream) {
    constexpr int V = kWidth<T>;
    const bool rows = s.channels_last ? s.c % V == 0 && s.x_pitch % V == 0 && aligned(s.x_ptr) : s.out_w % V == 0;
    const bool wide = rows && aligned(s.y_ptr);
    if (s.factor == 2 && s.taps == 2)
        wide ? start<T, V, 2, 2, Up>(s, stream) : start<T, 1, 2, 2, Up>(s, stream);
    else if (s.factor == 2 && s.taps == 4)
        wide ? start<T, V, 4, 2, Up>(s, stream) : start<T, 1, 4, 2, Up>(s, stream);
    else
        start<T, 1, 0, 0, Up>(s, stream);
}

template <typename T>
int run(const Upfirdn& s, int device, void* stream) {
    DeviceGuard guard(device);
    if (!guard.ok()) return guard.status();
    s.up ? choose<T, true>(s, stream) : choose<T, false>(s, stream);
    return guard.status();
}

}  // namespace

int upfirdn_fwd_cuda(const Upfirdn& s, int device, void* stream) {
    if (s.taps < 1 || s.factor < 1 || s.padding < 0) return kBadArgument;
    if (s.n < 0 || s.c < 0 || s.h < 1 || s.w < 1 || s.out_h < 1 || s.out_w < 1) return kBadArgument;
    if (s.n == 0 || s.c == 0) return kOk;
    EDM_FOR_DTYPE(s.dtype, run, s, device, stream)
}

}  // namespace edm
