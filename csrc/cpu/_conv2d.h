// How the outputs of a convolution are numbered.
#pragma once

#include "../conv2d.h"
#include "_layout.h"
#include "algorithms.h"

namespace edm {

constexpr int64_t kMostTiles = 24, kMostPixels = 48;  // of a block

struct Place {
    int64_t n, y, x;  // first output of a tile
};

// outputs of all images in a row, grouped in tiles of rows x columns; where x is doubled, those of one phase
struct Cut {
    int64_t oh, ow, rows, columns, tiles_y, tiles_x, total;
    explicit Cut(const Conv2d& s) : Cut(s, kAlgorithms[s.algorithm].tile) {}
    Cut(const Conv2d& s, const Tile& tile)
        : oh(s.h + 2 * s.padding - s.kernel + 1), ow(s.w + 2 * s.padding - s.kernel + 1), rows(tile.rows),
          columns(tile.columns), tiles_y((oh + rows - 1) / rows), tiles_x((ow + columns - 1) / columns),
          total(s.n * tiles_y * tiles_x) {}
    Place place(int64_t t) const {
        return {t / (tiles_x * tiles_y), t / tiles_x % tiles_y * rows, t % tiles_x * columns};
    }
    // the tile after the one at `at`
    Place next(Place at) const {
        if ((at.x += columns) < ow) return at;
        if ((at.y += rows) < oh) return {at.n, at.y, 0};
        return {at.n + 1, 0, 0};
    }
};

// The outputs of a doubled image at (2 i + y, 2 j + x) are those of one phase: there the 3x3 filter meets 2x2 pixels of
// the image that was doubled, and its taps on the same pixel are one. Without doubling there is one phase.
struct Phase {
    int64_t step = 1, y = 0, x = 0;
    int64_t index() const { return 2 * y + x; }
};

constexpr Phase phase_of(const Algorithm& algorithm, int64_t index) {
    return algorithm.doubled ? Phase{2, index / 2, index % 2} : Phase{};
}

}  // namespace edm
