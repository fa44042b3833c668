// AVX-512 whose sums of products of 16-bit integers are one instruction.
#include "isas.h"

#if EDM_X86
#define EDM_ROW_avx512vnni EDM_CHOSEN
#include "avx512.h"

EDM_BEGIN
static inline I dot(I sum, I x, I w) {
    // the intrinsic is not seen to overwrite `sum`: with it the compiler copies, and then spills, the accumulators
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}
EDM_END

#include "../kernels/table.h"
#endif
