// solver_update: d = (p x - q D)/t;  y = a base + h (sum_k weights_k terms_k + w d) + c noise, in this order, no
// contraction.
#pragma once

#include "common.h"

namespace edm {

constexpr int kMaxTerms = 8;

struct SolverUpdate {
    int dtype;
    void *y_ptr, *d_ptr;                         // d_ptr: null without D
    const void *base_ptr, *x_ptr, *D_ptr, *noise_ptr;  // x_ptr and D_ptr go together; noise_ptr may be null
    const void* terms_ptr[kMaxTerms];
    double weights[kMaxTerms];
    int num_terms;
    double p, q, t, a, h, w, c;
    int64_t size;                                // elements of every array; all lie in one order
};

int solver_update_fwd_cpu(const SolverUpdate& s, int isa, int threads);
int solver_update_fwd_cuda(const SolverUpdate& s, int device, void* stream);

}  // namespace edm
