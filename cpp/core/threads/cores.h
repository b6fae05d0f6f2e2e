// How many threads a call uses if nothing says so.
#pragma once

namespace rnnkern {

// `threads()` is then at most `n`, as long as OpenMP's own number stays what it is now. 0:
// OpenMP's.
void set_usable_cores(int n);

}  // namespace rnnkern
