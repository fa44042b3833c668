// How the outputs of a convolution are numbered.
#pragma once

#include "../conv2d.h"
#include "_layout.h"

namespace edm {

constexpr int64_t kMostTiles = 24, kMostPixels = 48;  // of a block

struct Place {
    int64_t n, y, x;  // first output of a tile
};

constexpr bool is_paired(int algorithm) { return algorithm >= kPaired; }
constexpr bool is_plain(int algorithm) { return algorithm % kPaired >= kPlain; }
constexpr int products_of(int algorithm) { return algorithm % kPlain; }

constexpr int64_t tile_rows(int algorithm) {
    const int products = products_of(algorithm);
    return products == kWinograd2 || products == kWinograd2Up ? 2 : products == kDirect || products == kInt16 ? 1 : 4;
}

constexpr int64_t tile_columns(int algorithm) {
    return algorithm % kPaired == kWinograd4x8Plain ? 8 : tile_rows(algorithm);
}

// outputs of all images in a row, grouped in tiles of rows x columns; where x is doubled, those of one phase
struct Cut {
    int64_t oh, ow, rows, columns, tiles_y, tiles_x, total;
    explicit Cut(const Conv2d& s)
        : oh(s.h + 2 * s.padding - s.kernel + 1), ow(s.w + 2 * s.padding - s.kernel + 1),
          rows(tile_rows(s.algorithm)), columns(tile_columns(s.algorithm)), tiles_y((oh + rows - 1) / rows),
          tiles_x((ow + columns - 1) / columns), total(s.n * tiles_y * tiles_x) {}
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

constexpr bool int16_products(int algorithm) {
    return algorithm == kInt16 || algorithm == kWinograd4Int16 || algorithm == kWinograd4UpInt16;
}

constexpr bool doubles(int algorithm) {
    const int products = products_of(algorithm);
    return products == kWinograd2Up || products == kWinograd4Up || products == kWinograd4UpInt16;
}

// The outputs of a doubled image at (2 i + y, 2 j + x) are those of one phase: there the 3x3 filter meets 2x2 pixels of
// the image that was doubled, and its taps on the same pixel are one. Without doubling there is one phase.
struct Phase {
    int64_t step = 1, y = 0, x = 0;
    int64_t index() const { return 2 * y + x; }
};

constexpr int64_t phases(int algorithm) { return doubles(algorithm) ? 4 : 1; }
constexpr Phase phase_of(int algorithm, int64_t index) {
    return doubles(algorithm) ? Phase{2, index / 2, index % 2} : Phase{};
}

}  // namespace edm
