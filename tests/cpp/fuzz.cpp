// Random problems, the kernels against the naive reference, bit for bit.
//
//   fuzz <first seed> <count>      exits with 1 and says what differs at the first difference
//
// With RNNKERN_LIBFUZZER: a target of libFuzzer, which chooses the bytes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "cases.h"

using namespace rnnkern;

#ifdef RNNKERN_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  testing::Draw draw(bytes, size);
  const testing::Problem problem(draw);
  const std::string found = testing::check(problem);
  if (found.empty()) return problem.large ? -1 : 0;  // -1: not kept as a start for others, too slow
  std::fprintf(stderr, "%s\n", found.c_str());
  std::abort();
}

#else

int main(int count, char** words) {
  if (count != 3) {
    std::fprintf(stderr, "usage: fuzz <first seed> <count>\n");
    return 2;
  }
  const auto& sets = testing::comparable_sets();
  if (sets.empty()) {
    std::fprintf(stderr, "fuzz: no instruction set here that rounds as the naive does\n");
    return 2;
  }
  const std::uint64_t first = std::strtoull(words[1], nullptr, 10);
  const std::uint64_t cases = std::strtoull(words[2], nullptr, 10);
  for (std::uint64_t seed = first; seed < first + cases; ++seed) {
    std::uint64_t bytes[24];  // more than a problem takes
    for (std::uint64_t i = 0; i < 24; ++i) bytes[i] = naive::mix(seed, i);
    testing::Draw draw(reinterpret_cast<unsigned char*>(bytes), sizeof bytes);
    const std::string found = testing::check(testing::Problem(draw));
    if (found.empty()) continue;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), found.c_str());
    return 1;
  }
  std::printf("%llu cases, the same bits:", static_cast<unsigned long long>(cases));
  for (const Kernels* set : sets) std::printf(" %s", set->name);
  std::printf("\n");
  return 0;
}

#endif
