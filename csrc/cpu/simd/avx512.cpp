// Sixteen floats: x86 with AVX-512 F, DQ, BW and VL.
#include "isas.h"

#if EDM_X86
#define EDM_ROW_avx512 EDM_CHOSEN
#include "avx512.h"

EDM_BEGIN
static inline I dot(I sum, I x, I w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w)); }
EDM_END

#include "../kernels/table.h"
#endif
