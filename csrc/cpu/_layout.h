// How the matrices of a product lie in memory, on every instruction set: a packed matrix in panels of kPanel columns,
// and rows that do not all fall into the same few sets of the first-level cache.
#pragma once

#include <cstdint>

#include "_pairs.h"

namespace edm {

constexpr int kPanel = 32;  // columns of a packed panel
constexpr int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
constexpr int64_t padded(int64_t columns) { return panels(columns) * kPanel; }

// floats from one row of a matrix to the next: rows a power of two apart would share few sets of the first-level cache
constexpr int64_t row_pitch(int64_t depth) { return (depth + 15) / 16 * 16 + 16; }

// the same for places that are written or read in turn: an odd number of cache lines
constexpr int64_t spread(int64_t floats) { return (floats / 16 | 1) * 16; }

// Long sums are cut: the rounding errors of a running sum grow with its length
constexpr int64_t kChunk = 128, kShortChunk = 64;

// elements of a row of int16: whole vectors, so that pairs and stores need no remainder
constexpr int64_t int16_pitch(int64_t depth) { return (depth + 31) / 32 * 32; }

// Floats of a packed panel of int16: pairs of rows by kPanel columns, then the factor of each column
constexpr int64_t int16_panel(int64_t depth) { return (int16_pitch(depth) / 2 + 1) * kPanel; }

// Floats of a packed panel for products in pairs: `depth` rows and the corrections
constexpr int64_t paired_panel(int64_t depth) { return (depth + parts_of(depth, kPairedChunk)) * kPanel; }

}  // namespace edm
