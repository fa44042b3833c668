// What every launcher shares: the caller's device made current for one launch, and the launch error as a status.
#pragma once

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

}  // namespace edm
