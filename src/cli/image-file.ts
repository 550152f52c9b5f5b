/**
 * Image files for commands that look at a file rather than at a disk: header, tables, creation. Nothing here opens the
 * backing file of an image unless its chain was asked for, so that a missing one stands in nobody's way.
 */
import * as fs from 'node:fs';
import { type BackingGate, checkRawFile, type NamingImage, namingImage, resolveFileName } from '../block/gate';
import { CHAIN_DEPTH_MAX, probeImage } from '../block/open';
import { BlockError, hostError } from '../errors';
import type { FormatModule, ImageHeader } from '../formats/format';
import { formatByName, probeFormat } from '../formats/registry';
import { FileStorage, type OpenedFile } from '../storage/file';
import { lockImage, lockRequestFor, WRITER_LOCK } from '../storage/image-lock';
import type { Storage, StorageEvent } from '../storage/storage';
import { UsageError } from './command';

export interface ImageFile {
  path: string;
  storage: FileStorage;
  module: FormatModule;
  header: ImageHeader;
}

export interface FileOptions {
  /** Absent: recognised by the first bytes. */
  format: string | undefined;
  readOnly: boolean;
  /** Read although somebody else writes. */
  forceShare: boolean;
  /** As for `FileStorage.open`. */
  admit?: ((file: OpenedFile) => void) | undefined;
  /** To be checked: the header may name tables that are not where it says. */
  damaged?: boolean;
}

/** The one FILE of a command line. */
export function onlyFile(positionals: string[]): string {
  const [path] = positionals;
  if (path === undefined || positionals.length > 1) throw new UsageError('Expecting one image file name');
  return path;
}

/** Opens one image file, locked as QEMU does, for the time of `use`. */
export function withImageFile<T>(path: string, options: FileOptions, use: (file: ImageFile) => T): T {
  // Before the file is opened: the message is about the word then.
  if (options.format !== undefined) formatByName(options.format);
  const storage = FileStorage.open(path, { readOnly: options.readOnly, admit: options.admit });
  try {
    return use(lockedImage(storage, options));
  } finally {
    storage.close();
  }
}

function lockedImage(storage: FileStorage, options: FileOptions): ImageFile {
  const { path } = storage;
  const { readOnly, forceShare, format } = options;
  const { name } = moduleOf(storage, format);
  // As QEMU: raw images have no tables that must fit together, so that looking at one need not keep writers away. A
  // writer never shares, whatever is asked for.
  const share = readOnly && (forceShare || name === 'raw');
  lockImage(storage.fd, path, lockRequestFor({ readOnly, share }, name));
  const { module, header } = options.damaged ? probeDamaged(storage, format) : probeImage(storage, format);
  return { path, storage, module, header };
}

function moduleOf(storage: Storage, format: string | undefined): FormatModule {
  return format === undefined ? probeFormat(storage) : formatByName(format);
}

function probeDamaged(storage: Storage, format: string | undefined): { module: FormatModule; header: ImageHeader } {
  const module = moduleOf(storage, format);
  return { module, header: module.readDamagedHeader?.(storage) ?? module.readHeader(storage) };
}

/** A layer of a chain; `overlay` names it as its backing file. */
interface NamedLayer {
  path: string;
  format: string | undefined;
  overlay?: NamingImage;
}

/** The same for an image and all layers below it, top first, as far as the gate lets them be opened. */
export function withChain<T>(
  path: string,
  options: FileOptions & { backing: BackingGate },
  use: (file: ImageFile) => T,
): T[] {
  const results: T[] = [];
  const seen = new Set<string>();
  let next: NamedLayer | undefined = { path, format: options.format };
  while (next !== undefined) {
    const { path: current, format, overlay }: NamedLayer = next;
    if (results.length === CHAIN_DEPTH_MAX) {
      throw new BlockError('LIMIT_EXCEEDED', `Backing chain of "${path}" has more than ${CHAIN_DEPTH_MAX} layers`, {
        path,
      });
    }
    const judge = (file: OpenedFile): void => {
      if (overlay !== undefined) checkRawFile('backing file', overlay, file, options.backing);
    };
    const named: FileOptions = { ...options, format, admit: format === 'raw' ? judge : undefined };
    next = withImageFile(current, named, (file): NamedLayer | undefined => {
      if (file.module.name === 'raw') judge(file.storage);
      if (!isNew(file.storage, seen)) {
        throw new BlockError('CORRUPT_IMAGE', `Backing file "${current}" appears twice in the chain of "${path}"`, {
          path,
        });
      }
      results.push(use(file));
      const { backing } = file.header;
      return backing === undefined
        ? undefined
        : {
            path: resolveFileName('backing file', current, backing.name),
            format: backing.format,
            overlay: namingImage(file.storage),
          };
    });
  }
  return results;
}

/** Are both names one file? False when one of them does not exist. */
export function sameFile(a: string, b: string): boolean {
  const [first, second] = [a, b].map((path) => fs.statSync(path, { bigint: true, throwIfNoEntry: false }));
  return first !== undefined && second !== undefined && first.dev === second.dev && first.ino === second.ino;
}

/**
 * Lets `fill` make the image `path`. A file that is in use is refused and left alone, whatever it holds. When `fill` fails
 * after its first change, no file is left: half an image is worse than none.
 */
export function createImageFile(path: string, fill: (storage: Storage) => void): void {
  const { fd, existed } = openForCreation(path);
  let storage: NewFileStorage | undefined;
  let done = false;
  try {
    const stat = fs.fstatSync(fd);
    if (!stat.isFile() && !stat.isBlockDevice()) {
      throw new BlockError(
        'INVALID_FORMAT',
        `Cannot create "${path}": it is neither a regular file nor a block device`,
        { path },
      );
    }
    storage = new NewFileStorage({ kind: 'file', fd, path, readOnly: false, isBlockDevice: stat.isBlockDevice() });
    lockImage(fd, path, WRITER_LOCK);
    fill(storage);
    done = true;
  } finally {
    const changed = storage?.changed ?? false;
    const isDevice = storage?.describe().isBlockDevice ?? false;
    if (!done && !isDevice && (changed || !existed)) fs.rmSync(path, { force: true });
    fs.closeSync(fd);
  }
}

/** Remembers whether anything was written. */
class NewFileStorage extends FileStorage {
  changed = false;

  override write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void {
    this.changed = true;
    super.write(offset, source, at, length, event);
  }

  override truncate(size: number, event: StorageEvent): void {
    this.changed = true;
    super.truncate(size, event);
  }
}

/** Opens without emptying: that may only be done under the lock. */
function openForCreation(path: string): { fd: number; existed: boolean } {
  const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;
  try {
    try {
      return { fd: fs.openSync(path, O_RDWR | O_CREAT | O_EXCL, 0o644), existed: false };
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
      // O_CREAT still: the name may be a link to a file that does not exist yet.
      return { fd: fs.openSync(path, O_RDWR | O_CREAT, 0o644), existed: true };
    }
  } catch (error) {
    throw hostError(error, `Cannot create "${path}"`, { path });
  }
}

function isNew(storage: FileStorage, seen: Set<string>): boolean {
  const { dev, ino } = fs.fstatSync(storage.fd, { bigint: true });
  const key = `${dev}:${ino}`;
  if (seen.has(key)) return false;
  seen.add(key);
  return true;
}
