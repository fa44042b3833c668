// One thread per output element in memory order, so that stores coalesce; the 2 x 2 and 4 x 4 filters are unrolled.
#include "../upfirdn.h"
#include "launch.h"

namespace edm {
namespace {

// the n-th part of i, going from the fastest index to the slowest
__device__ __forceinline__ int64_t take(int64_t& i, int64_t n) {
    const int64_t rest = i / n, part = i - rest * n;
    i = rest;
    return part;
}

// K and F: filter size and factor known at compile time, or 0
template <typename T, int K, int F, bool Up>
__global__ void __launch_bounds__(kThreads) _upfirdn_fwd(const Upfirdn s) {
    const int64_t taps = K ? K : s.taps, factor = F ? F : s.factor;
    const int64_t total = s.n * s.c * s.out_h * s.out_w, stride = static_cast<int64_t>(gridDim.x) * kThreads;
    const T* f = static_cast<const T*>(s.f_ptr);
    const T gain = T(s.gain);
    for (int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; o < total; o += stride) {
        int64_t rest = o;
        int64_t c = s.channels_last ? take(rest, s.c) : 0;
        const int64_t j = take(rest, s.out_w), i = take(rest, s.out_h);
        if (!s.channels_last) c = take(rest, s.c);
        const T* x = static_cast<const T*>(s.x_ptr) + rest * s.c * s.h * s.w + (s.channels_last ? c : c * s.h * s.w);
        const int64_t step = s.channels_last ? s.c : 1;
        // down: input row = factor i - padding + ky; up: factor row = i + padding - ky, for the ky that divide
        const int64_t qy = Up ? i + s.padding : factor * i - s.padding, qx = Up ? j + s.padding : factor * j - s.padding;
        const int64_t ky0 = Up ? qy % factor : 0, kx0 = Up ? qx % factor : 0, inc = Up ? factor : 1;
        const int64_t r0 = Up ? qy / factor : qy, c0 = Up ? qx / factor : qx, sign = Up ? -1 : 1;
        T sum = T(0);
#pragma unroll
        for (int64_t a = 0; a < (K ? (Up ? K / F : K) : taps); ++a) {
            const int64_t ky = ky0 + a * inc, r = r0 + sign * a;
            if (ky >= taps || r < 0 || r >= s.h) continue;
#pragma unroll
            for (int64_t b = 0; b < (K ? (Up ? K / F : K) : taps); ++b) {
                const int64_t kx = kx0 + b * inc, col = c0 + sign * b;
                if (kx < taps && col >= 0 && col < s.w) sum += x[(r * s.w + col) * step] * (f[ky * taps + kx] * gain);
            }
        }
        static_cast<T*>(s.y_ptr)[o] = sum;
    }
}

template <typename T, bool Up>
void launch(const Upfirdn& s, cudaStream_t stream) {
    const int blocks = blocks_for(s.n * s.c * s.out_h * s.out_w);
    if (s.factor == 2 && s.taps == 2)
        _upfirdn_fwd<T, 2, 2, Up><<<blocks, kThreads, 0, stream>>>(s);
    else if (s.factor == 2 && s.taps == 4)
        _upfirdn_fwd<T, 4, 2, Up><<<blocks, kThreads, 0, stream>>>(s);
    else
        _upfirdn_fwd<T, 0, 0, Up><<<blocks, kThreads, 0, stream>>>(s);
}

template <typename T>
int run(const Upfirdn& s, int device, void* stream) {
    DeviceGuard guard(device);
    if (!guard.ok()) return guard.status();
    if (s.up)
        launch<T, true>(s, static_cast<cudaStream_t>(stream));
    else
        launch<T, false>(s, static_cast<cudaStream_t>(stream));
    return guard.status();
}

}  // namespace

int upfirdn_fwd_cuda(const Upfirdn& s, int device, void* stream) {
    if (s.taps < 1 || s.factor < 1 || s.padding < 0) return kBadArgument;
    if (s.n < 0 || s.c < 0 || s.h < 1 || s.w < 1 || s.out_h < 1 || s.out_w < 1) return kBadArgument;
    if (s.dtype != kFloat64 && s.dtype != kFloat32) return kBadType;
    if (s.n == 0 || s.c == 0) return kOk;
    return s.dtype == kFloat64 ? run<double>(s, device, stream) : run<float>(s, device, stream);
}

}  // namespace edm
