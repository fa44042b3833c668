// Products in 16-bit integers: rows and columns are scaled to integers each by its own factor, multiplied and summed
// exactly in 32 bits, and scaled back. A sum of products is at most the product of the norms (Cauchy-Schwarz), so that
// factors which bound the norms by 2^15.5 leave no sum, nor any part of one, outside of 32 bits. A row of 256 typical
// numbers then keeps 11 bits below its root mean square, four times what bfloat16 keeps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "../_layout.h"
#include "../simd/vector.h"
#include "rows.h"

EDM_BEGIN
constexpr float kLargestNorm = 46300;  // of rounded numbers: below 2^15.5 = 46341 by what rounding adds to up to 4096

// q (int16_pitch(k)), zeros at the end, such that row = factor q; returns the factor. NaN and infinity in the row come
// back in the factor.
static float quantize(const float* row, int64_t k, int16_t* q) {
    V squares[2] = {V{}, V{}}, largest = V{};
    int64_t i = 0;
    for (; i + 2 * kLanes <= k; i += 2 * kLanes) {
        const V a = load(row + i), b = load(row + i + kLanes);
        squares[0] = fma(a, a, squares[0]);
        squares[1] = fma(b, b, squares[1]);
        largest = larger(larger(largest, a), b);
    }
    for (; i < k; i += kLanes) {
        const V a = load_upto(row + i, k - i);
        squares[0] = fma(a, a, squares[0]);
        largest = larger(largest, a);
    }
    // what rounding to halves adds to the norm, at most: sqrt(k) / 2
    const float root = std::sqrt(float(k)), bound = kLargestNorm - 0.5f * root;
    const float square = sum_of(squares[0] + squares[1]), most = largest_of(largest);
    // squares of numbers far from 1 leave the range of float32, and only the largest tells of the norm
    const bool known = most > 1e-15f && most < 1e15f;
    const float factor = std::max(known ? std::sqrt(square) / bound : most * (root / bound), most / 32767.0f);
    const V inverse = set1(factor > 1e-37f ? 1 / factor : 0);  // the inverse of less would be infinite
    for (i = 0; i + kLanes <= k; i += kLanes) store_int16(q + i, load(row + i) * inverse);
    if (i < k) store_int16(q + i, load_part(row + i, int(k - i)) * inverse), i += kLanes;
    for (; i < int16_pitch(k); i += kLanes) store_int16(q + i, V{});
    return square == square && most < HUGE_VALF ? factor : std::numeric_limits<float>::quiet_NaN();
}

using Rows16 = EvenRows<int16_t>;

template <int R>
static __attribute__((noinline)) void multiply_int16_fixed(const Rows16& rows, const float* factors, int64_t k,
                                                           const int16_t* b, const float* columns, float* c) {
    Rows16::Walk<R> a(rows);
    I acc[R][kWide];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < kWide; ++j) acc[i][j] = I{};
    for (int64_t p = 0; p < k; p += 2, b += 2 * kPanel) {
        I w[kWide];
#pragma GCC unroll 2
        for (int j = 0; j < kWide; ++j) w[j] = load_pairs(b + 2 * j * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const I x = set_pair(a[i]);
#pragma GCC unroll 2
            for (int j = 0; j < kWide; ++j) acc[i][j] = dot(acc[i][j], x, w[j]);
        }
        a.advance(2);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < kWide; ++j)
            store(c + i * kPanel + j * kLanes, to_float(acc[i][j]) * (load(columns + j * kLanes) * set1(factors[i])));
}

using MultiplyInt16 = void (*)(const Rows16&, const float*, int64_t, const int16_t*, const float*, float*);

template <int... I>
static inline MultiplyInt16 multiply_int16_for(int count, std::integer_sequence<int, I...>) {
    static constexpr MultiplyInt16 kernels[] = {multiply_int16_fixed<I + 1>...};
    return kernels[count - 1];
}

// c (count, kPanel) = rows times a panel of int16_panel(k) floats, for 1...kRows rows of int16_pitch(k), their factors
static void multiply_int16(int count, const int16_t* rows, const float* factors, int64_t k, const float* panel,
                           float* c) {
    const int64_t depth = int16_pitch(k);
    const float* columns = panel + depth / 2 * kPanel;
    const MultiplyInt16 multiply = multiply_int16_for(count, std::make_integer_sequence<int, kRows>());
    for (int j = 0; j < kPanel; j += kWide * kLanes)
        multiply({rows, depth}, factors, depth, reinterpret_cast<const int16_t*>(panel) + 2 * j, columns + j, c + j);
}

// weights (k, kPanel) -> a packed panel
static void pack_int16(const float* weights, int64_t k, float* panel) {
    const int64_t depth = int16_pitch(k);
    std::vector<float> column(size_t(k), 0.0f);
    std::vector<int16_t> q(static_cast<size_t>(depth));
    int16_t* pairs = reinterpret_cast<int16_t*>(panel);
    for (int j = 0; j < kPanel; ++j) {
        for (int64_t i = 0; i < k; ++i) column[size_t(i)] = weights[i * kPanel + j];
        panel[depth / 2 * kPanel + j] = quantize(column.data(), k, q.data());
        for (int64_t i = 0; i < depth; ++i) pairs[(i / 2 * kPanel + j) * 2 + i % 2] = q[size_t(i)];
    }
}
EDM_END
