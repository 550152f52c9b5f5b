/** The control group that limits this process's memory. */
import * as fs from 'node:fs';

/** What version 1 of control groups shows as no limit is a little below 2^63. */
const NO_LIMIT = 2 ** 62;

/**
 * Is the memory of this process limited by a control group of version 1? There a thread that runs out of memory waits for dirty pages of the
 * whole group to be written, also when that is this very thread's work; version 2 never waits so.
 * @param read reads a file, or throws
 */
export function inLimitedMemoryGroup(
  read: (file: string) => string = (file) => fs.readFileSync(file, 'utf8'),
): boolean {
  try {
    // "4:memory:/user.slice"; with version 2 there is no line with that controller.
    const group = /^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(.*)$/m.exec(read('/proc/self/cgroup'))?.[1];
    if (group === undefined) return false;
    const limit = /^hierarchical_memory_limit (\d+)$/m.exec(read(`/sys/fs/cgroup/memory${group}/memory.stat`))?.[1];
    return limit !== undefined && Number(limit) < NO_LIMIT;
  } catch {
    // Not mounted where it usually is, or not ours to see.
    return false;
  }
}
