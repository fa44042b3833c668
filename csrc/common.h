// Shared by every kernel: element types, status codes, and a parallel-for on the caller's threads.
#pragma once

#include <cstdint>

namespace edm {

enum DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 3 };  // the last two: CUDA only

// what a native function returns; a CUDA error e is kCudaError + e
enum Status : int { kOk = 0, kBadArgument = 1, kBadType = 2, kCudaError = 1000 };

#if defined(__GNUC__)
#define EDM_INLINE inline __attribute__((always_inline))
#define EDM_RESTRICT __restrict__
#else
#define EDM_INLINE inline
#define EDM_RESTRICT
#endif

// Calls body(context, begin, end) on contiguous parts of [0, size), at most `threads` of them and none smaller than
// `grain` but the last. Runs on the OpenMP pool that is already in the process (torch's), so that no second pool
// competes with it for the cores; without one, on threads of our own that sleep between calls.
using Body = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t size, int64_t grain, int threads, Body body, void* context);

// Whether two threads of parallel_for run on cores that share no cache, so that what one has written reaches the other
// by a long way. Measured now and then: a virtual machine's cores move. What depends on it may differ in time alone.
bool far_apart();
// what far_apart says from now on; negative: what is measured
void set_far_apart(int far);

// where parallel_for runs: the path of the OpenMP library, or "own threads"
const char* thread_pool();

template <typename F>
void parallel_for(int64_t size, int64_t grain, int threads, F&& f) {
    parallel_for(size, grain, threads, [](void* g, int64_t i, int64_t j) { (*static_cast<F*>(g))(i, j); }, &f);
}

}  // namespace edm
