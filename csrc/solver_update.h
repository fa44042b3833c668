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
    int num_terms, num_weights;                  // one weight for each term
    double p, q, t, a, h, w, c;
    int64_t size;                                // elements of every array; all lie in one order
};

inline bool fits(const SolverUpdate& s) {
    return s.num_terms >= 0 && s.num_terms <= kMaxTerms && s.num_terms == s.num_weights && s.size >= 0 &&
           !s.x_ptr == !s.D_ptr && (!s.D_ptr || s.d_ptr || !s.size);
}

int solver_update_fwd_cpu(const SolverUpdate& s, int isa, int threads);
int solver_update_fwd_cuda(const SolverUpdate& s, int device, void* stream);

}  // namespace edm
