// The sampler's arithmetic, element by element.
#include "../solver_update.h"

#include "_kernels.h"
#include "simd/isas.h"

namespace edm {

int solver_update_fwd_cpu(const SolverUpdate& s, int isa, int threads) {
    if (!fits(s) || !available(isa)) return kBadArgument;
    if (s.dtype != kFloat64 && s.dtype != kFloat32) return kBadType;
    const SolverUpdateKernels& kernels = kernels_of(isa).solver_update;
    const auto update = s.dtype == kFloat64 ? kernels.update_double : kernels.update_float;
    // fewer elements are not worth a thread
    parallel_for(s.size, 4096, threads, [&](int64_t begin, int64_t end) { update(s, begin, end); });
    return kOk;
}

}  // namespace edm
