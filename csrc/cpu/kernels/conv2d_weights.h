// The weights of a convolution as its algorithms multiply with them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../../conv2d.h"
#include "../_conv2d.h"
#include "../_layout.h"
#include "../_weights.h"
#include "../simd/vector.h"
#include "matmul_int16.h"
#include "pairs.h"
#include "winograd.h"

EDM_BEGIN
// g (count, kPanel): element j of what begins at from[o step], for each output channel o of a panel; zeros where there
// are no outputs. To the other end first if `flipped`.
static void read_filters(const float* from, int64_t step, int64_t outputs, int count, bool flipped, float* g) {
    for (int64_t o = 0; o < kPanel; o += kLanes)
        for (int j = 0; j < count; j += kLanes) {
            V t[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i)
                t[i] = o + i < outputs ? load_upto(from + (o + i) * step + j, count - j) : V{};
            transpose(t);
            const int rows = std::min(kLanes, count - j);
            for (int i = 0; i < rows; ++i) store(g + (flipped ? count - 1 - j - i : j + i) * kPanel + o, t[i]);
        }
}

// the 2x2 filter (4, kPanel) that a 3x3 one is for one phase of a doubled image
static void merge_taps(const float* g, Phase phase, float* merged) {
    std::fill(merged, merged + 4 * kPanel, 0.0f);
    for (int64_t i = 0; i < 3; ++i)
        for (int64_t j = 0; j < 3; ++j) {
            const int64_t to = (i + 1 - phase.y) / 2 * 2 + (j + 1 - phase.x) / 2;
            for (int k = 0; k < kPanel; ++k) merged[to * kPanel + k] += g[(i * 3 + j) * kPanel + k];
        }
}

// The filters of one panel and of `count` input channels from `first` on, `merged` for one phase of a doubled image or
// as they are: g (count, taps, kPanel).
static void read_panel(const Filters& f, bool merged, Phase phase, int64_t panel, int64_t first, int64_t count,
                       float* g) {
    constexpr int64_t together = 16;  // input channels whose filters are read at once, where they lie side by side
    const int64_t outputs = std::min<int64_t>(kPanel, f.out - panel * kPanel);
    const int64_t by_out = f.by_out(), by_in = f.by_in();
    const int taps = merged ? 4 : f.taps;
    float whole[together * 9 * kPanel];
    for (int64_t i = first, end = first + count, some; i < end; i += some, g += some * taps * kPanel) {
        some = f.transposed ? 1 : std::min(together, end - i);
        const float* from = f.weight + panel * kPanel * by_out + i * by_in;
        read_filters(from, by_out, outputs, int(some) * f.taps, f.transposed, merged ? whole : g);
        for (int64_t j = 0; merged && j < some; ++j)
            merge_taps(whole + j * 9 * kPanel, phase, g + j * 4 * kPanel);
        // the rows of a panel lie far apart, each too short to be foreseen
        for (int64_t o = 0; o < outputs; ++o)
            for (int64_t j = 0; j < some * f.taps; j += 16) prefetch(from + o * by_out + some * by_in + j);
    }
}

// one panel of `count` planes of a packed weight, for one phase
static void pack_panel(const Conv2dPack& s, Phase phase, int64_t panel, int64_t count, int64_t out, int64_t in,
                       const Balance& balance) {
    const int64_t plane = in * kPanel;
    const Algorithm& algorithm = kAlgorithms[s.algorithm];
    const bool small = algorithm.int16(), paired = algorithm.paired();
    const int64_t floats = small ? int16_panel(in) : paired ? paired_panel(in) : plane;
    float* packed = static_cast<float*>(s.packed_ptr) + (phase.index() * panels(out) + panel) * count * floats;
    std::vector<float> planes(small || paired ? size_t(count * plane) : 0);
    float* to = small || paired ? planes.data() : packed;
    const Filters filters{static_cast<const float*>(s.weight_ptr), out, in, int(s.kernel * s.kernel), s.transposed};
    std::vector<float> g(size_t(in * filters.taps * kPanel));
    read_panel(filters, algorithm.doubled, phase, panel, 0, in, g.data());
    if (!algorithm.transforms()) {
        for (int64_t j = 0; j < in * count; ++j)
            std::copy(g.data() + j * kPanel, g.data() + (j + 1) * kPanel, to + j % count * plane + j / count * kPanel);
    } else {
        with_transforms(algorithm, [&](auto rows, auto columns) {
            using Rows = decltype(rows);
            using Columns = decltype(columns);
            each_of(std::make_integer_sequence<int, Rows::kPoints>(), [&](auto row) {
                transform_weights<Rows, Columns, row>(g.data(), in, to + row * Columns::kPoints * plane, plane);
            });
        });
    }
    for (int64_t j = 0; small && j < count; ++j) pack_int16(to + j * plane, in, packed + j * floats);
    if (paired) pack_pairs(to, balance.weights, balance.outputs + panel * kPanel, in, packed);
}
EDM_END
