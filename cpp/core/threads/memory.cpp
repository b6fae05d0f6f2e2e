#include "threads/memory.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "threads/system.h"

// A block that waits is poisoned: AddressSanitizer sees who still uses it.
#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#endif

namespace rnnkern {
namespace {

// Large blocks lie on large pages where the system has them: fewer page faults, and the kernels
// stride through weights.
constexpr std::size_t kPage = std::size_t{2} << 20, kLarge = 2 * kPage;

std::size_t unit_of(std::size_t bytes) { return bytes < kLarge ? kLineBytes : kPage; }
std::size_t rounded(std::size_t bytes) {
  const std::size_t unit = unit_of(bytes);
  return bytes > SIZE_MAX - unit ? bytes : std::max(unit, (bytes + unit - 1) / unit * unit);
}

// The released blocks. The lock is only ever tried: a child of a fork may find it taken for good,
// and then does without.
class BlockCache {
 public:
  BlockCache() { blocks_.reserve(most_blocks); }  // so that `put` allocates nothing

  void* take(std::size_t bytes) noexcept {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (std::size_t i = blocks_.size(); i-- > 0;)
      if (blocks_[i].bytes == bytes) return remove(i);
    return nullptr;
  }
  // False: it is not wanted.
  bool put(void* p, std::size_t bytes) noexcept {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || bytes > kMostCachedBytes) return false;
    while (bytes_ + bytes > kMostCachedBytes || blocks_.size() == most_blocks)
      os::free_aligned(remove(0));
    ASAN_POISON_MEMORY_REGION(p, bytes);
    blocks_.push_back({p, bytes});
    bytes_ += bytes;
    return true;
  }
  std::size_t clear() noexcept {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return 0;
    const std::size_t bytes = bytes_;
    while (!blocks_.empty()) os::free_aligned(remove(blocks_.size() - 1));
    return bytes;
  }

 private:
  static constexpr std::size_t most_blocks = 64;
  struct Sized {
    void* p;
    std::size_t bytes;
  };
  void* remove(std::size_t i) noexcept {
    const Sized block = blocks_[i];
    blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
    bytes_ -= block.bytes;
    ASAN_UNPOISON_MEMORY_REGION(block.p, block.bytes);
    return block.p;
  }
  std::mutex mutex_;
  std::vector<Sized> blocks_;
  std::size_t bytes_ = 0;
};
BlockCache& block_cache() {
  static auto& all = *new BlockCache;  // never destroyed: blocks may be released at the very end
  return all;
}

}  // namespace

void* allocate(std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  if (size >= kFewestCachedBytes)
    if (void* const p = block_cache().take(size)) return p;
  void* p = os::allocate_aligned(unit_of(bytes), size);
  if (!p && release_cached() > 0) p = os::allocate_aligned(unit_of(bytes), size);
  if (!p) throw OutOfMemory("no memory for " + std::to_string(bytes) + " bytes");
  if (size >= kLarge) os::request_large_pages(p, size);
  return p;
}

void release(void* p, std::size_t bytes) noexcept {
  const std::size_t size = rounded(bytes);
  if (size < kFewestCachedBytes || !block_cache().put(p, size)) os::free_aligned(p);
}

std::size_t release_cached() noexcept { return block_cache().clear(); }

}  // namespace rnnkern
