// Cuts the gradient of the norm into groups, or slabs of them; kernels/group_norm_silu_bwd.h has the formulas.
#include <vector>

#include "_group_norm_silu.h"
#include "_kernels.h"

namespace edm {
namespace {

// gradients of weight, bias, scale and shift from P and Q
template <typename T>
void channel_gradients(const GroupNormSilu& s, const double* P) {
    const double* Q = P + s.n * s.c;
    T *dweight = static_cast<T*>(s.dparams_ptr), *dbias = dweight + s.c, *dscale = dbias + s.c;
    T* dshift = dscale + s.scale_rows * s.c;
    for (int64_t c = 0; c < s.c; ++c) {
        const double weight = static_cast<const T*>(s.weight_ptr)[c], bias = static_cast<const T*>(s.bias_ptr)[c];
        double dw = 0, db = 0, dsc = 0, dsh = 0;
        for (int64_t n = 0; n < s.n; ++n) {
            const double scale = scale_of<T>(s, n, c), p = P[n * s.c + c], q = Q[n * s.c + c];
            dw += scale * q;
            db += scale * p;
            dsc += weight * q + bias * p;
            dsh += p;
            if (s.scale_rows > 1) dscale[n * s.c + c] = T(weight * q + bias * p);
            if (s.shift_rows > 1) dshift[n * s.c + c] = T(p);
        }
        dweight[c] = T(dw);
        dbias[c] = T(db);
        if (s.scale_rows == 1) dscale[c] = T(dsc);
        if (s.shift_rows == 1) dshift[c] = T(dsh);
    }
}

template <typename T>
int run(const GroupNormSilu& s, const NormKernels<T>& kernels, int threads) {
    std::vector<double> sums(2 * s.n * s.c);
    double* P = sums.data();
    const auto body = s.channels_last ? kernels.backward_last : kernels.backward;
    for_items(s, threads, [&](int64_t most, int64_t begin, int64_t end) { body(s, P, most, begin, end); });
    channel_gradients<T>(s, P);
    return kOk;
}

}  // namespace

int group_norm_silu_bwd_cpu(const GroupNormSilu& s, int isa, int threads) {
    if (!sizes_fit(s, isa)) return kBadArgument;
    if (s.dtype == kFloat32) return run(s, kernels_of(isa).norm_float, threads);
    if (s.dtype == kFloat64) return run(s, kernels_of(isa).norm_double, threads);
    return kBadType;
}

}  // namespace edm
