// Products in pairs of terms (Winograd 1968, "A new algorithm for inner products"):
//     a0 b0 + a1 b1 = (a0 + b1) (a1 + b0) - a0 a1 - b0 b1,
// where the last two belong to a row and to a column, which meet many columns and rows, and are taken once for all of
// them: the correction that a sum begins with. One multiplication and two additions for two terms: a gain where
// additions have units of their own (AMD since Zen), which other products leave idle. Two terms of three go in pairs,
// and one alone: then both kinds of unit are busy, and three terms take the time of two. The rounding error is that of
// other products if the terms of rows and columns are of one size, and grows with the square of what is larger. So rows
// and columns are scaled, by powers of two, which change no digits: each input channel by the size of its weights,
// which are divided by it, then each pixel or tile and each output channel to a size of 1. If the numbers of a row have
// a mean, corrections grow with the length of the sum; the second channel of every other pair changes its sign, in rows
// and columns, and they cancel.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace edm {

// Terms k and k + kApart are a pair, k + 2 kApart is alone.
constexpr int64_t kApart = 16, kTriple = 3 * kApart;

// The term of the row at place k of a panel of `depth` rows, where those that meet at a step lie side by side.
constexpr int64_t term_at(int64_t k, int64_t depth) {
    const int64_t at = k % kTriple;
    return k < depth / kTriple * kTriple ? k - at + at % 3 * kApart + at / 3 : k;
}

// whether a term of `depth` changes its sign
constexpr bool is_negated(int64_t k, int64_t depth) {
    const int64_t at = k % kTriple;
    return k < depth / kTriple * kTriple && at / kApart == 1 && at % 2 == 1;
}

// Sums are taken in parts of `chunk` terms, a multiple of kTriple; the last part also takes what is left, up to
// kTriple - 1 terms. Each part has its correction.
constexpr int64_t kPairedChunk = 2 * kTriple, kShortPairedChunk = kTriple;
constexpr int64_t end_of_part(int64_t k, int64_t depth, int64_t chunk) {
    const int64_t end = k + chunk;
    return depth - end < kTriple ? depth : end;
}
constexpr int64_t parts_of(int64_t depth, int64_t chunk) {
    int64_t parts = 0;
    for (int64_t k = 0; k < depth; k = end_of_part(k, depth, chunk)) ++parts;
    return parts;
}

// By what numbers of size x are scaled to about 1, a power of two, and what takes that back: 0 from zeros, whose sums
// would otherwise be what rounding leaves of the corrections.
struct Scale {
    static constexpr int kMost = 106, kMostOfChannel = 20;  // of two that are multiplied, to stay within float32
    float to = 1, back = 1;
    explicit Scale(float x, int most = kMost) {
        if (x == 0) back = 0;
        if (!(x > 0) || !(x < HUGE_VALF)) return;
        int exponent;
        const float mantissa = std::frexp(x, &exponent);
        exponent = std::max(-most, std::min(exponent - (mantissa < 0.70710678f), most));
        to = std::ldexp(1.0f, -exponent), back = std::ldexp(1.0f, exponent);
    }
};

}  // namespace edm
