/** _exit(2): ends the process at once, with all its threads, whatever they wait for. */
import { declare } from './libc';

const exitCall = declare<[number]>('void _exit(int status)');

/**
 * For a process with threads that cannot be asked to end: `process.exit()` would wait for a thread in read(2). Nothing is flushed, no
 * `exit` listener runs; the kernel closes the descriptors and so releases locks and mounts.
 */
export function exitNow(code: number): never {
  exitCall(code);
  throw new Error('_exit returned');
}
