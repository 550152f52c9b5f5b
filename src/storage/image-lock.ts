/**
 * QEMU's image locks: OFD byte locks that every QEMU process and tool takes on image files, so that a running machine and
 * imagefs cannot both write. Byte numbers as QEMU uses them (seen with `lslocks` beside qemu-io):
 *
 *   100 + p   somebody uses permission p          p: 0 consistent read, 1 write, 2 write unchanged, 3 resize
 *   200 + p   somebody does not share permission p
 *
 * All are read locks, so many processes can hold the same byte; a conflict is found by asking whether a write lock on the
 * opposite byte could be had. They go with the descriptor when the process ends, however it ends.
 */
import { BlockError, hostError } from '../errors';
import { testLock, tryLock, unlock } from '../system/ofd-lock';

const USED = 100;
const UNSHARED = 200;

const PERMISSIONS = ['consistent read', 'write', 'write unchanged', 'resize'] as const;
const CONSISTENT_READ = 0;
const WRITE = 1;
const RESIZE = 3;

export interface LockRequest {
  used: readonly number[];
  unshared: readonly number[];
}

/** A disk that we write: nobody else may write or resize it, and readers must say that they accept changes. */
export const WRITER_LOCK: LockRequest = { used: [CONSISTENT_READ, WRITE, RESIZE], unshared: [WRITE, RESIZE] };
/** A raw disk that others may write at the same time, as a guest has it with `share-rw=on`. */
export const SHARING_WRITER_LOCK: LockRequest = { used: [CONSISTENT_READ, WRITE, RESIZE], unshared: [] };
/** An image that we only read: others may read it too, nobody may change it. */
export const READER_LOCK: LockRequest = { used: [CONSISTENT_READ], unshared: [WRITE, RESIZE] };
/** An image that we read although others may change it: the lock of QEMU's tools with -U. */
export const SHARING_READER_LOCK: LockRequest = { used: [CONSISTENT_READ], unshared: [] };

/** What an image is opened for. */
export interface ImageUse {
  readOnly: boolean;
  /** Others may change it meanwhile. A writer shares raw images only: of the rest the tables would be destroyed. */
  share: boolean;
}

export function lockRequestFor({ readOnly, share }: ImageUse, format: string): LockRequest {
  if (readOnly) return share ? SHARING_READER_LOCK : READER_LOCK;
  return share && format === 'raw' ? SHARING_WRITER_LOCK : WRITER_LOCK;
}

/**
 * Takes the locks on an open image, or throws BUSY and holds none.
 * @param path for the message
 */
export function lockImage(fd: number, path: string, request: LockRequest): void {
  const held: number[] = [];
  try {
    for (const byte of [...request.used.map((p) => USED + p), ...request.unshared.map((p) => UNSHARED + p)]) {
      if (!tryLock(fd, 'read', byte, 1))
        throw busy(path, byte >= UNSHARED ? byte - UNSHARED : byte - USED, byte >= UNSHARED);
      held.push(byte);
    }
    // Ours first, others second: of two processes that come at the same moment at least one sees the other.
    for (const p of request.used) if (!testLock(fd, 'write', UNSHARED + p, 1)) throw busy(path, p, false);
    for (const p of request.unshared) if (!testLock(fd, 'write', USED + p, 1)) throw busy(path, p, true);
  } catch (error) {
    for (const byte of held) unlock(fd, byte, 1);
    throw hostError(error, `Cannot lock "${path}"`, { path });
  }
}

/** The words of QEMU's two lines, which scripts look for. */
function busy(path: string, permission: number, shared: boolean): BlockError {
  const lock = `${shared ? 'shared ' : ''}"${PERMISSIONS[permission]}" lock`;
  return new BlockError(
    'BUSY',
    `Cannot open "${path}": Failed to get ${lock}. Is another process using the image [${path}]?`,
    { path },
  );
}
