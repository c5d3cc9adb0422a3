#pragma once

// Whether a sanitizer watches this program: slower tenfold, and with memory of
// its own.

namespace expertmesh {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace expertmesh
