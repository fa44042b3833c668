// Shared by every kernel: element types, status codes, instruction sets, and a parallel-for on the caller's threads.
#pragma once

#include <cstdint>

namespace edm {

enum DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 3 };  // the last two: CUDA only

// what a native function returns; a CUDA error e is kCudaError + e
enum Status : int { kOk = 0, kBadArgument = 1, kBadType = 2, kCudaError = 1000 };

enum Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vnni = 3 };

// the best instruction set this processor and operating system run
inline int best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return __builtin_cpu_supports("avx512vnni") ? kAvx512Vnni : kAvx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
    return kPortable;
}

// One function body, compiled once per instruction set: EDM_INLINE code takes on the target of the function that it is
// inlined into (a lambda would not), and the compiler vectorises it there.
#if defined(__GNUC__)
#define EDM_INLINE inline __attribute__((always_inline))
#define EDM_RESTRICT __restrict__
#else
#define EDM_INLINE inline
#define EDM_RESTRICT
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#define EDM_AVX2 __attribute__((target("avx2,fma")))
#define EDM_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#else
#define EDM_AVX2
#define EDM_AVX512
#endif

// Defines NAME_portable, NAME_avx2, NAME_avx512 around the EDM_INLINE template NAME, and NAME_for(isa) to pick one.
#define EDM_VARIANTS(NAME, ARGS, CALL)                                   \
    template <typename T>                                                \
    void NAME##_portable ARGS { NAME<T> CALL; }                          \
    template <typename T>                                                \
    EDM_AVX2 void NAME##_avx2 ARGS { NAME<T> CALL; }                     \
    template <typename T>                                                \
    EDM_AVX512 void NAME##_avx512 ARGS { NAME<T> CALL; }                 \
    template <typename T>                                                \
    auto NAME##_for(int isa) {                                           \
        return isa >= kAvx512 ? NAME##_avx512<T> : isa == kAvx2 ? NAME##_avx2<T> : NAME##_portable<T>; \
    }

// Calls body(context, begin, end) on contiguous parts of [0, size), at most `threads` of them and none smaller than
// `grain` but the last. Runs on the OpenMP pool that is already in the process (torch's), so that no second pool
// competes with it for the cores; without one, on threads of our own that sleep between calls.
using Body = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t size, int64_t grain, int threads, Body body, void* context);

// where parallel_for runs: the path of the OpenMP library, or "own threads"
const char* thread_pool();

template <typename F>
void parallel_for(int64_t size, int64_t grain, int threads, F&& f) {
    parallel_for(size, grain, threads, [](void* g, int64_t i, int64_t j) { (*static_cast<F*>(g))(i, j); }, &f);
}

}  // namespace edm
