// The instruction sets that the kernels are compiled for. Adding one takes a row here and a file of its name beside
// this one; what kernels/ holds is compiled for it as it is.
#pragma once

#include "../../common.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define EDM_X86 1
#define EDM_ON_X86(...) __VA_ARGS__
#else
#define EDM_X86 0
#define EDM_ON_X86(...)
#endif
#if defined(__aarch64__) && defined(__GNUC__)
#define EDM_ARM64 1
#define EDM_ON_ARM64(...) __VA_ARGS__
#else
#define EDM_ARM64 0
#define EDM_ON_ARM64(...)
#endif

// what every processor of the architecture has
#if EDM_ARM64
#define EDM_BASELINE "+simd"
#else
#define EDM_BASELINE ""
#endif
#define EDM_AVX512 "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"
#define EDM_HAS(FEATURE) (__builtin_cpu_supports(FEATURE) != 0)
#define EDM_HAS_AVX512 (EDM_HAS("avx512f") && EDM_HAS("avx512dq") && EDM_HAS("avx512bw") && EDM_HAS("avx512vl"))
#define EDM_HAS_AVX512VNNI (EDM_HAS_AVX512 && EDM_HAS("avx512vnni"))

// Where several are available the last one is taken. Each row: name; what the compiler is told; whether this processor
// and its operating system have it; vector registers; multiply-adds are fused; sums of products of int16 are one
// instruction; products in pairs (_pairs.h) have registers enough to pay.
#define EDM_ISAS(ISA)                                                                                  \
    ISA(portable, EDM_BASELINE, true, 16, false, false, false)                                         \
    EDM_ON_X86(ISA(avx2, "avx2,fma", EDM_HAS("avx2") && EDM_HAS("fma"), 16, true, false, false))       \
    EDM_ON_X86(ISA(avx512, EDM_AVX512, EDM_HAS_AVX512, 32, true, false, true))                         \
    EDM_ON_X86(ISA(avx512vnni, EDM_AVX512 ",avx512vnni", EDM_HAS_AVX512VNNI, 32, true, true, true))    \
    EDM_ON_ARM64(ISA(neon, EDM_BASELINE, true, 32, true, false, true))

namespace edm {

#define EDM_PLACE(NAME, ...) NAME##_place,
enum IsaPlace : int { EDM_ISAS(EDM_PLACE) kIsaCount };  // in the list
#undef EDM_PLACE

struct Isa {
    const char* name;
    bool available;
    int registers;
    bool fma, int16_dot, pairs;
};

int isa_count();
const Isa& isa_at(int isa);  // 0 <= isa < isa_count()
bool available(int isa);     // false for what is no instruction set
int best_isa();

}  // namespace edm

// A file for an instruction set chooses its row: #define EDM_ROW_avx2 EDM_CHOSEN. Of the others nothing is left.
#define EDM_CHOSEN ~, EDM_KEEP
#define EDM_KEEP(...) __VA_ARGS__
#define EDM_DROP(...)
#define EDM_SECOND(...) EDM_SECOND_(__VA_ARGS__, )
#define EDM_SECOND_(FIRST, SECOND, ...) SECOND
#define EDM_IF_CHOSEN(NAME) EDM_SECOND(EDM_ROW_##NAME, EDM_DROP)
#define EDM_NAME_OF(NAME, ...) EDM_IF_CHOSEN(NAME)(NAME)
#define EDM_PLACE_OF(NAME, ...) EDM_IF_CHOSEN(NAME)(NAME##_place)
#define EDM_TARGET_OF(NAME, TARGET, ...) EDM_IF_CHOSEN(NAME)(TARGET)
#define EDM_REGISTERS_OF(NAME, TARGET, AVAILABLE, REGISTERS, ...) EDM_IF_CHOSEN(NAME)(REGISTERS)

// Around code that is compiled for the chosen instruction set, in a namespace of its name. Nothing is included in
// between: the functions of other headers would take on the target, and might be the copy that other files are linked
// to.
#define EDM_TEXT(...) EDM_TEXT_(__VA_ARGS__)
#define EDM_TEXT_(...) #__VA_ARGS__
#if EDM_X86 && defined(__clang__)
#define EDM_PUSH_TARGET \
    _Pragma(EDM_TEXT(clang attribute push(__attribute__((target(EDM_ISAS(EDM_TARGET_OF)))), apply_to = function)))
#define EDM_POP_TARGET _Pragma("clang attribute pop")
#elif (EDM_X86 || EDM_ARM64) && !defined(__clang__)
#define EDM_PUSH_TARGET _Pragma("GCC push_options") _Pragma(EDM_TEXT(GCC target(EDM_ISAS(EDM_TARGET_OF))))
#define EDM_POP_TARGET _Pragma("GCC pop_options")
#else
#define EDM_PUSH_TARGET
#define EDM_POP_TARGET
#endif
#define EDM_BEGIN EDM_PUSH_TARGET namespace edm { namespace EDM_ISAS(EDM_NAME_OF) {
#define EDM_END } } EDM_POP_TARGET
