// The corrections of products in pairs, see _pairs.h.
#pragma once

#include <cstdint>

#include "../_layout.h"
#include "../_pairs.h"
#include "../simd/vector.h"

EDM_BEGIN
// Sums over the lanes of vectors, as many at a time as a vector has lanes.
struct LaneSums {
    V waiting[kLanes];
    float* to[kLanes];
    int count = 0;
    void add(V v, float* sum) {
        waiting[count] = v, to[count++] = sum;
        if (count == kLanes) finish();
    }
    void finish() {
        for (int i = count; i < kLanes; ++i) waiting[i] = V{};
        transpose(waiting);
        for (int step = 1; step < kLanes; step *= 2)
            for (int i = 0; i < kLanes; i += 2 * step) waiting[i] = waiting[i] + waiting[i + step];
        float sums[kLanes];
        store(sums, waiting[0]);
        for (int i = 0; i < count; ++i) *to[i] = sums[i];
        count = 0;
    }
};

// the corrections of a row of `depth` terms, one for each part
static inline float* correct_row(const float* row, int64_t depth, int64_t chunk, float* to, LaneSums& sums) {
    for (int64_t k = 0, end; k < depth; k = end, ++to) {
        end = end_of_part(k, depth, chunk);
        V sum = {};
        for (int64_t l = k; l + kTriple <= end; l += kTriple)
            for (int64_t i = l; i < l + kApart; i += kLanes) sum = fnma(load(row + i), load(row + i + kApart), sum);
        sums.add(sum, to);
    }
    return to;
}

// the corrections (parts, kPanel) of a panel of `depth` terms
static void correct_columns(const float* panel, int64_t depth, int64_t chunk, float* to) {
    for (int64_t k = 0, end; k < depth; k = end, to += kPanel) {
        end = end_of_part(k, depth, chunk);
        for (int j = 0; j < kPanel; j += kLanes) {
            V sum[2] = {};
            const float* const last = panel + (k + (end - k) / kTriple * kTriple) * kPanel;
            for (const float* row = panel + k * kPanel + j; row < last; row += 6 * kPanel)
                for (int m = 0; m < 2; ++m)
                    sum[m] = fnma(load(row + 3 * m * kPanel), load(row + (3 * m + 1) * kPanel), sum[m]);
            store(to + j, sum[0] + sum[1]);
        }
    }
}

// weights (depth, kPanel) times the scales of their inputs and of the panel's outputs -> a packed panel
static void pack_pairs(const float* weights, const float* inputs, const float* outputs, int64_t depth, float* panel) {
    for (int64_t place = 0; place < depth; ++place)
        for (int j = 0; j < kPanel; ++j) {
            const int64_t k = term_at(place, depth);
            panel[place * kPanel + j] = weights[k * kPanel + j] * (inputs[k] * outputs[j]);
        }
    correct_columns(panel, depth, kPairedChunk, panel + depth * kPanel);
}
EDM_END
