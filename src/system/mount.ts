/** mount(2) and umount2(2). Both need CAP_SYS_ADMIN. */
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import { declare, lastError, SystemError } from './libc';

const EINVAL = 22;

/** Words of mount(8) and the MS_ bit that each sets; `false` clears it instead. */
const MOUNT_FLAGS: ReadonlyMap<string, readonly [bit: number, set: boolean]> = new Map([
  ['ro', [1, true]],
  ['rw', [1, false]],
  ['nosuid', [2, true]],
  ['suid', [2, false]],
  ['nodev', [4, true]],
  ['dev', [4, false]],
  ['noexec', [8, true]],
  ['exec', [8, false]],
  ['sync', [16, true]],
  ['async', [16, false]],
  ['dirsync', [128, true]],
  ['nosymfollow', [256, true]],
  ['symfollow', [256, false]],
  ['noatime', [1024, true]],
  ['atime', [1024, false]],
  ['nodiratime', [2048, true]],
  ['diratime', [2048, false]],
  ['relatime', [0x200000, true]],
  ['norelatime', [0x200000, false]],
  ['strictatime', [0x1000000, true]],
  ['nostrictatime', [0x1000000, false]],
  ['lazytime', [0x2000000, true]],
  ['nolazytime', [0x2000000, false]],
]);

const MNT_FORCE = 1;
const MNT_DETACH = 2;
const UMOUNT_NOFOLLOW = 8;

const mountCall = declare<[string, string, string, number, string]>(
  'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
);
const umount2 = declare<[string, number]>('int umount2(const char *target, int flags)');

/** Is this a word that `mount` turns into a flag of the kernel? */
export function isMountFlag(word: string): boolean {
  return MOUNT_FLAGS.has(word);
}

/** The MS_ bits of the words, later ones winning. Throws EINVAL for a word that is no flag. */
export function mountFlagBits(words: readonly string[]): number {
  let bits = 0;
  for (const word of words) {
    const flag = MOUNT_FLAGS.get(word);
    if (flag === undefined) throw new SystemError(EINVAL, 'mount', word);
    bits = flag[1] ? bits | flag[0] : bits & ~flag[0];
  }
  return bits;
}

export function mount(source: string, target: string, type: string, flags: readonly string[], data: string): void {
  if (mountCall(source, target, type, mountFlagBits(flags), data) < 0) throw lastError('mount', target);
}

export interface UmountOptions {
  /** Out of the tree at once, gone when its last user leaves. */
  lazy?: boolean;
  /** FUSE: fails every request in flight and every later one, so that nobody waits for a server that will not answer. */
  force?: boolean;
}

function umountBits({ lazy, force }: UmountOptions): number {
  return UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0) | (force ? MNT_FORCE : 0);
}

/** Never from a thread that serves the mount: unmounting may wait for it to write. */
export function umount(target: string, options: UmountOptions = {}): void {
  if (umount2(target, umountBits(options)) < 0) throw lastError('umount2', target);
}

/**
 * As `umount`, on a thread of its own, so that the caller goes on serving.
 * A worker rather than koffi's `async`: that one does not bring errno back from its thread.
 */
export function umountAsync(target: string, options: UmountOptions = {}): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(path.join(__dirname, '..', 'system', 'umount-worker.js'), {
      workerData: { target, options },
    });
    worker.once('message', (errno: number) => {
      if (errno === 0) resolve();
      else reject(new SystemError(errno, 'umount2', target));
    });
    worker.once('error', reject);
  });
}
