// One thread per element, every operation rounded on its own: the compiler may not contract the _rn intrinsics.
#include "../solver_update.h"
#include "launch.h"

namespace edm {
namespace {

__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double sub(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double quotient(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float quotient(float a, float b) { return __fdiv_rn(a, b); }

template <typename T>
__device__ __forceinline__ T at(const void* p, int64_t i) {
    return static_cast<const T*>(p)[i];
}

template <typename T>
__global__ void __launch_bounds__(kThreads) _solver_update_fwd(const SolverUpdate s) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < s.size; i += stride) {
        T total = T(0);
        bool started = false;  // the first term starts the sum: 0 + x would lose the sign of a zero
        for (int k = 0; k < s.num_terms; ++k) {
            const T part = mul(T(s.weights[k]), at<T>(s.terms_ptr[k], i));
            total = started ? add(total, part) : part;
            started = true;
        }
        if (s.D_ptr) {
            T d = sub(mul(T(s.p), at<T>(s.x_ptr, i)), mul(T(s.q), at<T>(s.D_ptr, i)));
            if (s.t != 1) d = quotient(d, T(s.t));
            static_cast<T*>(s.d_ptr)[i] = d;
            const T part = mul(T(s.w), d);
            total = started ? add(total, part) : part;
            started = true;
        }
        T y = mul(T(s.a), at<T>(s.base_ptr, i));
        if (started) y = add(y, mul(T(s.h), total));
        if (s.noise_ptr) y = add(y, mul(T(s.c), at<T>(s.noise_ptr, i)));
        static_cast<T*>(s.y_ptr)[i] = y;
    }
}

}  // namespace

int solver_update_fwd_cuda(const SolverUpdate& s, int device, void* stream) {
    if (s.num_terms < 0 || s.num_terms > kMaxTerms || s.size < 0) return kBadArgument;
    if (s.dtype != kFloat64 && s.dtype != kFloat32) return kBadType;
    if (s.size == 0) return kOk;
    DeviceGuard guard(device);
    if (!guard.ok()) return guard.status();
    const auto queue = static_cast<cudaStream_t>(stream);
    if (s.dtype == kFloat64)
        _solver_update_fwd<double><<<blocks_for(s.size), kThreads, 0, queue>>>(s);
    else
        _solver_update_fwd<float><<<blocks_for(s.size), kThreads, 0, queue>>>(s);
    return guard.status();
}

}  // namespace edm
