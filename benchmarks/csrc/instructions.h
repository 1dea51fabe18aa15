// What the drivers of this folder share. Each runs named pieces of work of one header of csrc/ on fixed inputs, for an
// instruction counter: `driver NAME ISA`, where ISA is "baseline" or "avx2" (valgrind 3.19 knows no AVX-512). Only what
// `measured` calls is counted. Without arguments a driver prints the names.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "simd/isa.h"

using Work = std::function<void()>;

extern "C" void fgrl_measured(const Work& work) {
  work();
  asm volatile("" ::: "memory");  // no jump in place of the call
}

// Called through this, so that the compiler neither inlines nor clones it, and the counter finds it by its name.
static void (*volatile measured)(const Work&) = fgrl_measured;

// Of the standard library only the generators, not the distributions, give the same numbers everywhere.
inline std::mt19937 generator(0);

inline std::vector<float> numbers(int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = static_cast<float>(generator() >> 8) / (1 << 23) - 1.0f;
  return values;
}

inline int run(int argc, char** argv, const std::map<std::string, Work>& works) {
  if (argc != 3) {
    for (const auto& [name, work] : works) std::puts(name.c_str());
    return 0;
  }
  const auto work = works.find(argv[1]);
  if (work == works.end()) return std::fprintf(stderr, "unknown work %s\n", argv[1]), 1;
  fgrl::isa_limit = std::string(argv[2]) == "avx2" ? fgrl::Isa::AVX2 : fgrl::Isa::BASELINE;
  work->second();
  return 0;
}
