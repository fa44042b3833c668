// The convolution with a weight as networks hold it, whose transform is taken a panel at a time. conv2d.cpp cuts the
// work.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../../conv2d.h"
#include "../_conv2d.h"
#include "../_layout.h"
#include "../_weights.h"
#include "../simd/vector.h"
#include "conv2d_output.h"
#include "conv2d_weights.h"
#include "matmul.h"
#include "normalise.h"
#include "pairs.h"
#include "read_tile.h"
#include "winograd.h"

EDM_BEGIN
// the terms of a part of a sum: more outputs from fewer products cost digits
template <class Columns, bool Paired>
static constexpr int64_t chunk_of() {
    if (Columns::kPoints > 6) return Paired ? kShortPairedChunk : kShortChunk;
    return Paired ? kPairedChunk : kChunk;
}

// The rows [first, last) of image n, normalised, to their places in `image`
static void normalise_rows(const Conv2d& s, int64_t n, int64_t first, int64_t last, float* image, int64_t pitch) {
    const float *mean = static_cast<const float*>(s.affine_ptr) + n * 3 * s.in, *a = mean + s.in, *b = a + s.in;
    const float* x = static_cast<const float*>(s.x_ptr) + n * s.h * s.w * s.x_pitch;
    for (int64_t p = first * s.w; p < last * s.w; ++p)
        normalise_pixel(image + p * pitch, x + p * s.x_pitch, mean, a, b, s.in, s.silu);
}

// B^T d B of the tiles [first, last) of a chunk that begins with tile `base`, to the planes v. `image`: room for one
// that is normalised, as its rows are needed, so that they are read while they are in the caches.
static void read_tiles(const Conv2d& s, const Cut& cut, Phase phase, int64_t base, int64_t first, int64_t last,
                       const Chunks& chunks, float* v, float* image) {
    Conv2d near = s;
    if (s.affine_ptr) near.x_ptr = image, near.x_pitch = row_pitch(s.in);
    LaneSums corrections;
    const Balance balance(s.balance_ptr, s.in, s.out);
    with_transforms(kAlgorithms[s.algorithm], [&](auto rows, auto columns) {
        using Rows = decltype(rows);
        using Columns = decltype(columns);
        constexpr int64_t chunk = chunk_of<Columns, true>();
        const int64_t step = chunks.pitch, behind = corrections_at(s.in);
        Place at = cut.place(base + first);
        int64_t n = -1, done = 0;  // the image that lies in `image`, its rows so far
        for (int64_t t = first; t < last; ++t, at = cut.next(at)) {
            const int64_t y = at.y + phase.y, x = at.x + phase.x, top = y - s.padding;
            if (s.affine_ptr) {
                if (n != at.n) n = at.n, done = std::max<int64_t>(0, top);
                const int64_t end = std::min(s.h, top + Rows::kPoints);
                if (done < end) normalise_rows(s, n, done, end, image, near.x_pitch), done = end;
            }
            float* to = v + t * chunks.tile;
            const int64_t image_at = s.affine_ptr ? 0 : at.n;
            if (!kAlgorithms[s.algorithm].paired()) {
                read_tile<Rows, Columns>(near, image_at, y, x, to, step);
                continue;
            }
            to[chunks.pitch - 1] = read_tile<Rows, Columns, true>(near, image_at, y, x, to, step, balance.channels);
            for (float* const end = to + chunks.planes * step; to < end; to += step) {
                float* correction = to + behind;
                for (int64_t k = 0; k < s.in; k += kDepth)
                    correction = correct_row(to + k, std::min(kDepth, s.in - k), chunk, correction, corrections);
            }
        }
    });
    if (corrections.count) corrections.finish();
}

// One panel of the outputs of the tiles [first, last) of the chunk, from the planes v. Weights are transformed as many
// at a time as the second-level cache holds, and multiplied at once.
template <bool Paired>
static void multiply_tiles(const Conv2d& s, const Filters& filters, const Cut& cut, Phase phase, int64_t base,
                           int64_t first, int64_t last, const Chunks& chunks, int64_t panel, const float* v,
                           float* scratch) {
    const int64_t count = last - first, m_step = spread(count * kPanel);
    float *m = scratch, *g = m + chunks.planes * m_step, *u = g + 9 * kDepth * kPanel;
    v += first * chunks.tile;
    const Tail tail(s);
    const Balance balance(s.balance_ptr, s.in, s.out);
    const int64_t output = panel * kPanel;  // the first
    with_transforms(kAlgorithms[s.algorithm], [&](auto rows, auto columns) {
        using Rows = decltype(rows);
        using Columns = decltype(columns);
        constexpr int P = Rows::kPoints, Q = Columns::kPoints;
        constexpr int64_t chunk = chunk_of<Columns, Paired>();
        int64_t corrections = corrections_at(s.in);  // of the slice, in a row
        for (int64_t k = 0; k < s.in; k += kDepth) {
            const int64_t depth = std::min(kDepth, s.in - k);
            read_panel(filters, kAlgorithms[s.algorithm].doubled, phase, panel, k, depth, g);
            each_of(std::make_integer_sequence<int, P>(), [&](auto row) {
                transform_weights<Rows, Columns, row, Paired>(g, depth, u, kPlaneStep,
                                                              Paired ? balance.weights + k : nullptr,
                                                              Paired ? balance.outputs + output : nullptr);
                for (int j = 0; j < Q; ++j) {
                    const int plane = row * Q + j;
                    const float* from = v + plane * chunks.pitch + k;
                    float *weights = u + j * kPlaneStep, *behind = weights + depth * kPanel;
                    if (Paired) correct_columns(weights, depth, chunk, behind);
                    // the tiles come from far, the weights are near
                    float* const to = m + plane * m_step;
                    const float* const next = from + chunks.pitch;
                    const Product product{depth, weights, to, kPanel, k > 0, chunk, next, behind, corrections - k};
                    multiply_rows<Ahead::kRows, Paired>(count, EvenRows<float>{from, chunks.tile}, product);
                }
            });
            corrections += parts_of(depth, chunk);
        }
        Place at = cut.place(base + first);
        for (int64_t t = 0; t < count; ++t, at = cut.next(at)) {
            const float factor = Paired ? v[t * chunks.tile + chunks.pitch - 1] : 1;
            write_tile<Rows, Columns>(s, tail, cut, phase, at, output, m + t * kPanel, m_step, t + 1 < count, factor,
                                      Paired ? balance.back + output : nullptr);
        }
    });
}
EDM_END
