// solver_update: d = (p x - q D)/t;  y = a base + h (sum_k weights_k terms_k + w d) + c noise, in this order, no
// contraction.
#pragma once

#include "arguments.h"

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

template <>
inline std::vector<Field> fields<SolverUpdate>() {
    using S = SolverUpdate;
    return {MUST(kAny, dtype), MUST(kAny, y_ptr), MAY(kAny, d_ptr), MUST(kAny, base_ptr), MAY(kAny, x_ptr),
            MAY(kAny, D_ptr), MAY(kAny, noise_ptr), LIST(kAny, terms_ptr, num_terms), LIST(kAny, weights, num_weights),
            MUST(kAny, p), MUST(kAny, q), MUST(kAny, t), MUST(kAny, a), MUST(kAny, h), MUST(kAny, w), MUST(kAny, c),
            MUST(kAny, size)};
}

inline bool fits(const SolverUpdate& s) {
    return s.num_terms >= 0 && s.num_terms <= kMaxTerms && s.num_terms == s.num_weights && s.size >= 0 &&
           !s.x_ptr == !s.D_ptr && (!s.D_ptr || s.d_ptr || !s.size);
}

int solver_update_fwd_cuda(const SolverUpdate& s, int device, void* stream);

}  // namespace edm
