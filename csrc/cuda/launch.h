// What every launcher shares: the caller's device made current for one launch, and the launch error as a status.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "../common.h"

namespace edm {

class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        error_ = cudaGetDevice(&saved_);
        if (error_ == cudaSuccess && saved_ != device) error_ = cudaSetDevice(device);
    }
    ~DeviceGuard() {
        int now = saved_;
        if (cudaGetDevice(&now) == cudaSuccess && now != saved_) cudaSetDevice(saved_);
    }
    // kOk, or the first error of the guard and of the launch before this call
    int status() const {
        const cudaError_t launch = error_ == cudaSuccess ? cudaGetLastError() : error_;
        return launch == cudaSuccess ? kOk : kCudaError + launch;
    }
    bool ok() const { return error_ == cudaSuccess; }

  private:
    int saved_ = 0;
    cudaError_t error_;
};

constexpr int kThreads = 256;

// blocks of kThreads that cover n items, capped: kernels loop with a grid stride
inline int blocks_for(int64_t n) { return static_cast<int>(std::min<int64_t>((n + kThreads - 1) / kThreads, 1 << 20)); }

// queues one launch; its error is seen by DeviceGuard::status
template <typename... Args, typename... Given>
inline void launch(void (*kernel)(Args...), int64_t blocks, int threads, void* stream, const Given&... given) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = static_cast<cudaStream_t>(stream);
    cudaLaunchKernelEx(&config, kernel, given...);
}

// i / n of numbers that are not negative; a division of 64 bits only where it takes one
__device__ __forceinline__ int64_t divided(int64_t i, int64_t n) {
    return ((i | n) >> 32) == 0 ? static_cast<uint32_t>(i) / static_cast<uint32_t>(n) : i / n;
}

// V elements that are read and written in one access
template <typename T, int V>
struct alignas(sizeof(T) * V) Vec {
    T v[V];
};

template <typename T, int V>
__device__ __forceinline__ Vec<T, V> load(const T* p) {
    return *reinterpret_cast<const Vec<T, V>*>(p);
}

template <typename T, int V>
__device__ __forceinline__ void store(T* p, const Vec<T, V>& x) {
    if constexpr (sizeof(x) == 16) {  // an instruction that the compiler does not take apart
        uint4 bits;
        memcpy(&bits, &x, 16);
        __stwb(reinterpret_cast<uint4*>(p), bits);
    } else {
        *reinterpret_cast<Vec<T, V>*>(p) = x;
    }
}

template <typename T>
constexpr int kWidth = 16 / sizeof(T);  // elements of a 16-byte access

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// sums are kept in float32, those of float64 in float64
template <typename T>
struct Accumulator {
    using type = float;
};
template <>
struct Accumulator<double> {
    using type = double;
};

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T narrow(typename Accumulator<T>::type x) {
    return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// function<T>(...) for the element type that the code stands for
#define EDM_FOR_DTYPE(DTYPE, FUNCTION, ...)                                    \
    switch (DTYPE) {                                                           \
        case kFloat32: return FUNCTION<float>(__VA_ARGS__);                    \
        case kFloat64: return FUNCTION<double>(__VA_ARGS__);                   \
        case kFloat16: return FUNCTION<__half>(__VA_ARGS__);                   \
        case kBfloat16: return FUNCTION<__nv_bfloat16>(__VA_ARGS__);           \
        default: return kBadType;                                              \
    }

}  // namespace edm
