/**
 * Persistent dirty bitmaps, as far as a writer that does not track them must know them: a bitmap that should record every
 * change (flag `auto`) does not record ours, so it is marked as in use, which makes it inconsistent for everybody, before
 * the first write. Its data and the others stay as they are. That is what the specification demands of a writer.
 */
import type { Storage } from '../../storage/storage';
import { alignUp, divCeil } from '../../units';
import type { BitmapsExtension } from './extensions';

/** Bytes of a directory entry before its extra data and its name. */
const ENTRY_BYTES = 24;
const FLAG_IN_USE = 1;
const FLAG_AUTO = 2;

/** One bitmap, as `qemu-img info` shows it. */
export interface BitmapInfo {
  name: string;
  granularity: number;
  flags: ('in-use' | 'auto')[];
}

interface DirectoryEntry extends BitmapInfo {
  /** Host offset of the flags. */
  flagsAt: number;
  flagBits: number;
  tableEntries: number;
}

/** The bitmaps of an image; undefined when the directory makes no sense. */
export function readBitmaps(storage: Storage, extension: BitmapsExtension): BitmapInfo[] | undefined {
  const entries = readDirectory(storage, extension);
  return entries?.map(({ name, granularity, flags }) => ({ name, granularity, flags }));
}

/** Marks what our writing makes inconsistent; the caller syncs. @returns false when the directory makes no sense: nothing was changed */
export function markBitmapsInUse(storage: Storage, extension: BitmapsExtension): boolean {
  const entries = readDirectory(storage, extension);
  if (entries === undefined) return false;
  for (const entry of entries) {
    if ((entry.flagBits & FLAG_AUTO) !== 0) markInUse(storage, entry);
  }
  return true;
}

/**
 * Marks the bitmaps whose tables are not made for a disk of `size` bytes, before it takes that size: as valid ones they would
 * make the whole image unreadable for QEMU. The caller syncs. @returns whether there are any
 */
export function markBitmapsOfOtherSize(
  storage: Storage,
  extension: BitmapsExtension,
  clusterSize: number,
  size: number,
): boolean {
  let marked = false;
  for (const entry of readDirectory(storage, extension) ?? []) {
    // Bits are stored in words of 64.
    const bytes = divCeil(divCeil(size, entry.granularity), 64) * 8;
    if (entry.tableEntries !== divCeil(bytes, clusterSize)) marked = markInUse(storage, entry) || marked;
  }
  return marked;
}

function markInUse(storage: Storage, { flagsAt, flagBits }: DirectoryEntry): boolean {
  if ((flagBits & FLAG_IN_USE) !== 0) return false;
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE((flagBits | FLAG_IN_USE) >>> 0, 0);
  storage.write(flagsAt, bytes, 0, 4, 'header-update');
  return true;
}

function readDirectory(storage: Storage, extension: BitmapsExtension): DirectoryEntry[] | undefined {
  const { count, directorySize, directoryOffset } = extension;
  if (directorySize < count * ENTRY_BYTES || directoryOffset + directorySize > storage.size()) return undefined;
  const bytes = Buffer.alloc(directorySize);
  storage.read(directoryOffset, bytes, 0, directorySize);
  const entries: DirectoryEntry[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + ENTRY_BYTES > directorySize) return undefined;
    const flagBits = bytes.readUInt32BE(at + 12);
    const nameSize = bytes.readUInt16BE(at + 18);
    const nameAt = at + ENTRY_BYTES + bytes.readUInt32BE(at + 20);
    if (nameAt + nameSize > directorySize) return undefined;
    const flags: BitmapInfo['flags'] = [];
    if ((flagBits & FLAG_IN_USE) !== 0) flags.push('in-use');
    if ((flagBits & FLAG_AUTO) !== 0) flags.push('auto');
    const name = bytes.toString('utf8', nameAt, nameAt + nameSize);
    const tableEntries = bytes.readUInt32BE(at + 8);
    const flagsAt = directoryOffset + at + 12;
    entries.push({ name, granularity: 2 ** bytes[at + 17], flags, flagsAt, flagBits, tableEntries });
    at = alignUp(nameAt + nameSize, 8);
  }
  return at === directorySize ? entries : undefined;
}
