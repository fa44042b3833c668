// Cuts the norm into groups, or slabs of them.
#include "_group_norm_silu.h"
#include "_kernels.h"

namespace edm {
namespace {

template <typename T>
int run(const GroupNormSilu& s, const NormKernels<T>& kernels, int threads) {
    for_items(s, threads, [&](int64_t most, int64_t begin, int64_t end) {
        if (s.channels_last) kernels.forward_last(s, most, begin, end);
        else kernels.forward(s, begin, end);
    });
    return kOk;
}

}  // namespace

int group_norm_silu_fwd_cpu(const GroupNormSilu& s, int isa, int threads) {
    if (!sizes_fit(s, isa) || (s.channels_last && s.x_pitch < s.c)) return kBadArgument;
    if (s.affine_ptr ? !s.channels_last : !s.y_ptr) return kBadArgument;
    if (s.dtype == kFloat32) return run(s, kernels_of(isa).norm_float, threads);
    if (s.dtype == kFloat64) return run(s, kernels_of(isa).norm_double, threads);
    return kBadType;
}

}  // namespace edm
