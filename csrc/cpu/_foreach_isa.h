// Compiles the file EDM_BODY once per instruction set, in the namespaces edm::portable, edm::avx2, edm::avx512 and
// edm::avx512vnni, for kernels that need explicit vectors and multiply-adds. Each copy sees the types and operations of
// _simd.inc. Include once, last.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "../common.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define EDM_X86 1
#include <immintrin.h>
#else
#define EDM_X86 0
#endif

#define EDM_LEVEL 0
namespace edm {
namespace portable {
#include "_simd.inc"
#include EDM_BODY
}  // namespace portable
}  // namespace edm
#undef EDM_LEVEL

#if EDM_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define EDM_LEVEL 1
namespace edm {
namespace avx2 {
#include "_simd.inc"
#include EDM_BODY
}  // namespace avx2
}  // namespace edm
#undef EDM_LEVEL
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define EDM_LEVEL 2
namespace edm {
namespace avx512 {
#include "_simd.inc"
#include EDM_BODY
}  // namespace avx512
}  // namespace edm
#undef EDM_LEVEL
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma")
#endif
#define EDM_LEVEL 3
namespace edm {
namespace avx512vnni {
#include "_simd.inc"
#include EDM_BODY
}  // namespace avx512vnni
}  // namespace edm
#undef EDM_LEVEL
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// CALL in the namespace of `isa`
#if EDM_X86
#define EDM_DISPATCH(isa, CALL)                       \
    ((isa) == kAvx512Vnni ? avx512vnni::CALL          \
     : (isa) == kAvx512   ? avx512::CALL              \
     : (isa) == kAvx2     ? avx2::CALL                \
                          : portable::CALL)
#else
#define EDM_DISPATCH(isa, CALL) portable::CALL
#endif
