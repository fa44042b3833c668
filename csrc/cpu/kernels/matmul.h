// Products of rows with a packed matrix: c[i, :] = sum_k row_i[k] panel[k, :], the sum taken in one order of k whatever
// rows are computed together, so that a row's bits depend on nothing but the row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../_layout.h"
#include "../_pairs.h"
#include "../simd/vector.h"
#include "rows.h"

EDM_BEGIN

// what comes from far, and is asked for before it is needed: rows of the panel, or the rows to be multiplied next
enum class Ahead { kNothing, kPanel, kRows };
constexpr int64_t kRowsAhead = 32;

// c (rows, kPanel), `pitch` floats from row to row, = or += rows times a panel of `depth` rows, the sum in parts of
// `chunk` terms
struct Product {
    int64_t depth;
    const float* panel;
    float* c;
    int64_t pitch;
    bool add = false;
    int64_t chunk = kChunk;
    const float* next = nullptr;     // Ahead::kRows: the first of the rows after these, as far apart as they are
    const float* columns = nullptr;  // in pairs: the corrections of the columns, (parts, kPanel);
    int64_t corrections = 0;         // those of a row, (parts), are so far behind its first term
};

// The steps [0, count) of R rows, one term each
template <int R, Ahead A, class Walk>
static EDM_INLINE void step_alone(Walk& a, const float*& b, int64_t count, const float* line,
                                                             V (&acc)[R][kWide]) {
#pragma GCC unroll 2
    for (const float* const last = b + count * kPanel; b != last; b += kPanel) {
        V w[kWide];
        if constexpr (A == Ahead::kRows) prefetch(line), line += a.pitch;
#pragma GCC unroll 2
        for (int j = 0; j < kWide; ++j) {
            if constexpr (A == Ahead::kPanel) prefetch(b + kRowsAhead * kPanel + j * kLanes);
            w[j] = load(b + j * kLanes);
        }
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const V x = set1(*a[i]);
#pragma GCC unroll 2
            for (int j = 0; j < kWide; ++j) acc[i][j] = fma(x, w[j], acc[i][j]);
        }
        a.advance(1);
    }
}

// kTriple terms of R rows, a pair and one alone at a step. Additions and multiplications have to lie close together, or
// one kind of unit waits for the other: they alternate after every two rows.
template <int R, Ahead A, class Walk>
static EDM_INLINE void step_in_pairs(Walk& a, const float*& b, const float* line,
                                                                V (&acc)[R][kWide]) {
    for (const float* const last = b + kTriple * kPanel; b != last; b += 3 * kPanel) {
        V w[3][kWide];
        if constexpr (A == Ahead::kRows) {
#pragma GCC unroll 3
            for (int k = 0; k < 3; ++k) prefetch(line + k * kApart);
            line += a.pitch;
        }
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k)
#pragma GCC unroll 2
            for (int j = 0; j < kWide; ++j) {
                if constexpr (A == Ahead::kPanel) prefetch(b + (k + kRowsAhead) * kPanel + j * kLanes);
                w[k][j] = load(b + k * kPanel + j * kLanes);
            }
#pragma GCC unroll 16
        for (int first = 0; first < R; first += 2) {
#pragma GCC unroll 2
            for (int i = first; i < first + 2; ++i)
#pragma GCC unroll 2
                for (int j = 0; i < R && j < kWide; ++j)
                    acc[i][j] = fma(add_at(w[1][j], a[i]), add_at(w[0][j], a[i] + kApart), acc[i][j]);
#pragma GCC unroll 2
            for (int i = first; i < first + 2; ++i)
#pragma GCC unroll 2
                for (int j = 0; i < R && j < kWide; ++j)
                    acc[i][j] = fma_at(w[2][j], a[i] + 2 * kApart, acc[i][j]);
        }
        a.advance(1);
    }
    a.advance(kTriple - kApart);
}

template <int R, Ahead A, bool Paired, class Rows>
static __attribute__((noinline)) void multiply_fixed(const Rows& rows, const Product& p) {
    // where rows are asked for, steps go by as many as a cache line has terms: at each, a line of the next row
    constexpr int64_t together = A == Ahead::kRows ? 16 : kChunk;
    typename Rows::template Walk<R> a(rows);
    const int64_t depth = p.depth, chunk = p.chunk, pitch = p.pitch;
    const float *b = p.panel, *const next = p.next, *columns = p.columns;
    int64_t correction = p.corrections;  // of the part, from where the rows are
    bool add = p.add;
    if constexpr (Paired && A == Ahead::kRows) {
        const float* corrections = next + correction;
        for (int i = 0; i < R; ++i, corrections += a.pitch) prefetch(corrections);
    }
    for (int64_t k = 0, end; k < depth; k = end) {
        end = Paired ? end_of_part(k, depth, chunk) : std::min(k + chunk, depth);
        V acc[R][kWide];
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < kWide; ++j)
                acc[i][j] = Paired ? add_at(load(columns + j * kLanes), a[i] + correction) : V{};
        int64_t l = k;
        for (; Paired && l + kTriple <= end; l += kTriple) step_in_pairs<R, A>(a, b, next + l, acc);
        for (; l < end; l += together) step_alone<R, A>(a, b, std::min(together, end - l), next + l, acc);
        float* to = p.c;
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i, hide(to += pitch))
#pragma GCC unroll 2
            for (int j = 0; j < kWide; ++j) {
                float* at = to + j * kLanes;
                store(at, add ? load(at) + acc[i][j] : acc[i][j]);
            }
        add = true;
        if constexpr (Paired) columns += kPanel, correction += 1 - (end - k);
    }
}

template <class Rows>
using Multiply = void (*)(const Rows&, const Product&);

template <Ahead A, bool Paired, class Rows, int... I>
static inline Multiply<Rows> multiply_for(int count, std::integer_sequence<int, I...>) {
    static constexpr Multiply<Rows> kernels[] = {multiply_fixed<I + 1, A, Paired, Rows>...};
    return kernels[count - 1];
}

constexpr int kColumns = kWide * kLanes;  // that are computed at once

// the product of 1...kRows rows
template <Ahead A = Ahead::kNothing, bool Paired = false, class Rows>
static void multiply_few(int count, const Rows& rows, Product p) {
    // rows are asked for once: by the first columns
    constexpr Ahead after = A == Ahead::kRows ? Ahead::kNothing : A;
    constexpr auto counts = std::make_integer_sequence<int, kRows>();
    multiply_for<A, Paired, Rows>(count, counts)(rows, p);
    const Multiply<Rows> multiply = multiply_for<after, Paired, Rows>(count, counts);
    for (int column = kColumns; column < kPanel; column += kColumns) {
        p.panel += kColumns, p.c += kColumns;
        if (Paired) p.columns += kColumns;
        multiply(rows, p);
    }
}

// A panel wider than kColumns is read more than once by every few rows, and does not stay in the first-level cache, as
// a part of it does: there each part of the sums is taken for all rows before the next.
constexpr bool kPartsInTurn = kPanel > kColumns;

// how many of `left` rows to compute at once: too few of them wait for their own sums
static inline int rows_at_once(int64_t left) {
    const bool halves = kPartsInTurn && left > kRows && left < 2 * kRows;
    return int(halves ? (left + 1) / 2 : std::min<int64_t>(kRows, left));
}

// The product of any number of rows. Ahead::kPanel: the first few ask for the panel.
template <Ahead A = Ahead::kNothing, bool Paired = false, class Rows>
static void multiply_rows(int64_t count, const Rows& rows, const Product& p) {
    static_assert(kChunk % kShortChunk == 0, "whole parts of sums");
    const int64_t part = kPartsInTurn && !Paired ? kChunk : p.depth;
    for (int64_t k = 0; k < p.depth; k += part) {
        Product some = p;
        some.depth = std::min(part, p.depth - k), some.panel += k * kPanel, some.add = p.add || k > 0;
        for (int64_t i = 0; i < count;) {
            const Rows these = rows.from(i, k);
            const int few = rows_at_once(count - i);
            i += few;
            if constexpr (A == Ahead::kRows) {
                if (i < count) some.next = rows.from(i, k).first;
                else some.next = k + part < p.depth ? rows.from(0, k + part).first : p.next;
            }
            if (A != Ahead::kPanel || i == few) multiply_few<A, Paired>(few, these, some);
            else multiply_few<Ahead::kNothing, Paired>(few, these, some);
            some.c += few * p.pitch;
        }
    }
}
EDM_END
