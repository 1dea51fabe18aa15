// Every instruction set's product against its definition in long double: sizes around tiles and blocks, either operand
// transposed, written and added, of float and of BFloat16. Memory is exactly as large as it must be, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "linear/matmul.h"
#include "isas.h"

static float value(float element) { return element; }

static float value(fgrl::BFloat16 element) {
  const uint32_t bits = static_cast<uint32_t>(element.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

static void draw(float number, float& element) { element = number; }

static void draw(float number, fgrl::BFloat16& element) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  element.bits = static_cast<uint16_t>(bits >> 16);
}

template <typename E>
static void check(int64_t rows, int64_t depth, int64_t columns, int kind, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<E> a(rows * depth), b(depth * columns);
  std::vector<float> out(rows * columns, NAN);
  for (auto* matrix : {&a, &b}) {
    for (E& element : *matrix) draw(normal(random), element);
  }
  const fgrl::Matrix<const E> left{a.data(), rows, depth, kind & 1 ? 1 : depth, kind & 1 ? rows : 1};
  const fgrl::Matrix<const E> right{b.data(), depth, columns, kind & 2 ? 1 : columns, kind & 2 ? depth : 1};
  const fgrl::Matrix<float> result{out.data(), rows, columns, columns, 1};
  const fgrl::MatmulBlocks blocks(rows, columns, kind & 1 ? 1 : 4);
  fgrl::MatmulScratch<E> scratch;
  for (const bool add : {false, true}) {
    for (int64_t i = 0; i < blocks.down * blocks.across; ++i) {
      const int64_t row = i % blocks.down * blocks.height, column = i / blocks.down * blocks.width;
      fgrl::multiply_block(left.part(row, 0, blocks.height, depth), right.part(0, column, depth, blocks.width),
                           result.part(row, column, blocks.height, blocks.width), add, scratch);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      long double wanted = 0;
      for (int64_t k = 0; k < depth; ++k) {
        wanted += static_cast<long double>(value(left.data[i * left.row_stride + k * left.column_stride])) *
                  value(right.data[k * right.row_stride + j * right.column_stride]);
      }
      if (std::fabs(2 * wanted - out[i * columns + j]) <= 1e-5L * static_cast<long double>(depth + 1)) continue;
      std::printf("%ld x %ld x %ld, kind %d, isa %d: %Lg, not %g\n", static_cast<long>(rows), static_cast<long>(depth),
                  static_cast<long>(columns), kind, static_cast<int>(fgrl::isa()), 2 * wanted,
                  static_cast<double>(out[i * columns + j]));
      std::exit(1);
    }
  }
}

template <typename E>
static void check_sizes(std::mt19937& random) {
  for (int kind = 0; kind < 4; ++kind) {
    for (const int64_t rows : {1, 3, 8, 9, 33, 257}) {
      for (const int64_t depth : {1, 2, 31, 191, 193}) {
        for (const int64_t columns : {1, 12, 47, 48, 49, 97, 200}) check<E>(rows, depth, columns, kind, random);
      }
    }
    check<E>(33, 600, 800, kind, random);
  }
}

int main() {
  std::mt19937 random(0);
  for (const auto limit : present_isas()) {
    fgrl::isa_limit = limit;
    check_sizes<float>(random);
    if (fgrl::multiplies_bf16()) check_sizes<fgrl::BFloat16>(random);
  }
  std::puts("every instruction set agrees with the definition");
}
