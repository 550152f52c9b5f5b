/**
 * koffi without its JavaScript. That loads Node's https for an installer that comes with it, which costs each command and each thread
 * of a mount 15 ms, and adds only checks of its version and deprecated functions (docs/adr/0005-koffi.md).
 */
import type * as Koffi from 'koffi';

export const koffi = load();

function load(): typeof Koffi {
  try {
    return require(`koffi/build/koffi/linux_${process.arch}/koffi.node`);
  } catch {
    // Not glibc, or koffi calls this processor otherwise, or has moved its files: it knows.
    return require('koffi');
  }
}
