// What the core asks of the operating system: clocks, sleep, threads, fork and memory. One file a
// system: system_posix.cpp.
#pragma once

#include <cstddef>

#include "threads/runtime.h"

namespace rnnkern::os {

Nanoseconds wall_clock();     // steady
Nanoseconds thread_clock();   // what the calling thread has had of a core
Nanoseconds process_clock();  // the same of all threads of the process

// Until woken, or not for long; at once where `word` is not `expected`, and at any time for
// nothing.
void sleep(int* word, int expected);
void wake(int* word, int most);

// Calls `call` in each child of a fork, from now on: false if it can't. `call` must be safe in a
// signal handler.
bool in_forked_children(void (*call)()) noexcept;

// How many of so many threads, at most kMostThreads, can be started at the same time: tries it.
int startable(int threads);

void* allocate_aligned(std::size_t alignment, std::size_t bytes);  // null: no memory
void free_aligned(void* p);
void request_large_pages(void* p, std::size_t bytes);  // advice

}  // namespace rnnkern::os
