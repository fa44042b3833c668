// How large the numbers of a matrix are.
#pragma once

#include <cmath>
#include <cstdint>

#include "../simd/vector.h"

EDM_BEGIN
// the root mean square of rows of `depth` terms, each times its scale
static float size_of(const float* const* rows, int64_t count, int64_t depth, const float* scales) {
    constexpr int several = 4;  // sums side by side
    V squares[several] = {};
    int64_t k = 0;
    for (; k + several * kLanes <= depth; k += several * kLanes) {
        V scale[several];
#pragma GCC unroll 4
        for (int j = 0; j < several; ++j) scale[j] = load(scales + k + j * kLanes);
        for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < several; ++j) {
                const V x = load(rows[i] + k + j * kLanes) * scale[j];
                squares[j] = fma(x, x, squares[j]);
            }
    }
    for (; k < depth; k += kLanes)
        for (int64_t i = 0; i < count; ++i) {
            const V x = load_upto(rows[i] + k, depth - k) * load_upto(scales + k, depth - k);
            squares[0] = fma(x, x, squares[0]);
        }
    const float square = sum_of((squares[0] + squares[1]) + (squares[2] + squares[3]));
    if (square > 1e-30f && square < 1e30f) return std::sqrt(square / float(count * depth));
    V largest = {};  // squares of numbers far from 1 leave the range of float32
    for (k = 0; k < depth; k += kLanes)
        for (int64_t i = 0; i < count; ++i)
            largest = larger(largest, load_upto(rows[i] + k, depth - k) * load_upto(scales + k, depth - k));
    return largest_of(largest);
}
EDM_END
