// Memory for tapes, results and a call's workspace.
//
// A training loop takes the same sizes again and again. Handed back to the system and taken anew,
// they would cost a page fault a page in each call; so released blocks wait for a while.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "problem.h"

namespace rnnkern {

// What Python sees as MemoryError, in words.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// Smaller blocks are malloc's alone, which keeps them itself.
inline constexpr std::size_t kFewestCachedBytes = std::size_t{32} << 10;
// So many bytes wait at most; those that were released first go first.
inline constexpr std::size_t kMostCachedBytes = std::size_t{128} << 20;

// Uninitialised memory on cache lines; OutOfMemory when there is none.
void* allocate(std::size_t bytes);
void release(void* p, std::size_t bytes) noexcept;
// Hands back to the system what waits: so many bytes.
std::size_t release_cached() noexcept;

struct Release {
  std::size_t bytes = 0;
  void operator()(void* p) const noexcept { release(p, bytes); }
};
template <class T>
using Block = std::unique_ptr<T[], Release>;
template <class T>
Block<T> block(Index n) {
  const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(T);
  return Block<T>(static_cast<T*>(allocate(bytes)), Release{bytes});
}

}  // namespace rnnkern
