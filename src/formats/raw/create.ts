/** Makes a raw image: a file of the wanted length that reads zero. */
import { BlockError, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { MIB, SECTOR_SIZE } from '../../units';
import type { CreateOptions } from '../format';

/** Bytes of one write while zeroes are written. */
const PIECE = MIB;

/**
 * Makes the storage a new raw image. `falloc` reserves host blocks for all of it, `full` writes it.
 * A block device keeps its length, which must be large enough; only its first sector is cleared, so that nobody takes what
 * lies there for another format.
 */
export function createRaw(storage: Storage, options: CreateOptions): void {
  const { path } = storage;
  if (options.backing !== undefined) {
    throw new BlockError('UNSUPPORTED_FEATURE', `Cannot create raw image "${path}": raw images have no backing file`, {
      path,
    });
  }
  if (!Number.isSafeInteger(options.size) || options.size < 0) {
    const allowed = `[0, ${hex(Number.MAX_SAFE_INTEGER)}]`;
    throw new BlockError(
      'LIMIT_EXCEEDED',
      `Cannot create raw image "${path}": size ${options.size} is not in ${allowed}`,
      { path },
    );
  }
  const descriptor = storage.describe();
  if (descriptor.kind === 'file' && descriptor.isBlockDevice) {
    clearDevice(storage, options.size);
    return;
  }
  storage.truncate(0, 'create');
  storage.truncate(options.size, 'create');
  if (options.preallocation === 'falloc' && options.size > 0) storage.allocate(0, options.size, 'create');
  if (options.preallocation === 'full') writeZeroBytes(storage, 0, options.size);
  storage.sync('create');
}

/** Writes real zeroes, so that the host keeps blocks for all of the range. */
export function writeZeroBytes(storage: Storage, offset: number, length: number): void {
  const zeroes = new Uint8Array(Math.min(PIECE, length));
  const end = offset + length;
  for (let at = offset; at < end; at += PIECE) storage.write(at, zeroes, 0, Math.min(PIECE, end - at), 'create');
}

function clearDevice(storage: Storage, size: number): void {
  const { path } = storage;
  const capacity = storage.size();
  if (size > capacity) {
    const problem = `the device has ${hex(capacity)} bytes, fewer than ${hex(size)}`;
    throw new BlockError('NO_SPACE', `Cannot create raw image "${path}": ${problem}`, { path });
  }
  writeZeroBytes(storage, 0, Math.min(SECTOR_SIZE, size));
  storage.sync('create');
}
