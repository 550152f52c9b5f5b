/** Bytes of a host file or block device, by synchronous calls on one descriptor that all threads share. */
import * as fs from 'node:fs';
import { BlockError, errnoNameOf, hostError } from '../errors';
import { blockDeviceSize, zeroRange } from '../system/block-device';
import { fallocate } from '../system/fallocate';
import { longWait } from '../system/long-wait';
import { seekData, seekHole } from '../system/lseek';
import { startReading } from '../system/start-reading';
import { readAt, writeAt } from '../system/transfer';
import type { HostPlace, Storage, StorageDescriptor, StorageEvent } from './storage';

/** Written where the host cannot punch holes. */
const ZEROES = new Uint8Array(64 * 1024);

/** Linux, all architectures that Node runs on; Node has no name for it. */
const O_PATH = 0o10000000;

/** An open file, as it was named. */
export interface OpenedFile {
  fd: number;
  /** For messages. */
  path: string;
}

type FileDescriptor = Extract<StorageDescriptor, { kind: 'file' }>;

export class FileStorage implements Storage {
  readonly path: string;
  readonly readOnly: boolean;
  readonly fd: number;
  private readonly isBlockDevice: boolean;

  /**
   * Opens an existing file. What it is gets judged first, without opening it for anything: to open a FIFO or a device can
   * have effects of its own (a watchdog starts, a tape rewinds). What is opened then is what was judged, whatever its
   * name has come to mean since.
   * @param path as the user named it
   * @param options.admit is called with a descriptor that knows the file but cannot read it; throws when it must not be opened
   */
  static open(
    path: string,
    options: { readOnly: boolean; admit?: ((file: OpenedFile) => void) | undefined },
  ): FileStorage {
    const { readOnly, admit } = options;
    const action = `Cannot open "${path}"`;
    const { O_RDONLY, O_RDWR, O_NONBLOCK } = fs.constants;
    let known: number;
    try {
      known = fs.openSync(path, O_PATH);
    } catch (error) {
      throw hostError(error, `${action}${readOnly ? '' : ' for writing'}`, { path });
    }
    try {
      const stat = fs.fstatSync(known);
      if (stat.isDirectory())
        throw new BlockError('INVALID_FORMAT', `${action}: it is a directory, not a disk image`, { path });
      if (!stat.isFile() && !stat.isBlockDevice()) {
        throw new BlockError('INVALID_FORMAT', `${action}: it is neither a regular file nor a block device`, { path });
      }
      admit?.({ fd: known, path });
      const fd = fs.openSync(`/proc/self/fd/${known}`, (readOnly ? O_RDONLY : O_RDWR) | O_NONBLOCK);
      return new FileStorage({ kind: 'file', fd, path, readOnly, isBlockDevice: stat.isBlockDevice() });
    } catch (error) {
      throw hostError(error, `${action}${readOnly ? '' : ' for writing'}`, { path });
    } finally {
      fs.closeSync(known);
    }
  }

  /** Creates the file, or empties an existing one. */
  static create(path: string): FileStorage {
    try {
      const fd = fs.openSync(path, 'w+', 0o644);
      return new FileStorage({ kind: 'file', fd, path, readOnly: false, isBlockDevice: false });
    } catch (error) {
      throw hostError(error, `Cannot create "${path}"`, { path });
    }
  }

  /** Another thread's object over the same descriptor. */
  constructor(descriptor: FileDescriptor) {
    this.fd = descriptor.fd;
    this.path = descriptor.path;
    this.readOnly = descriptor.readOnly;
    this.isBlockDevice = descriptor.isBlockDevice;
  }

  read(offset: number, target: Uint8Array, at: number, length: number): number {
    let done = 0;
    try {
      while (done < length) {
        const count = readAt(this.fd, target, at + done, length - done, offset + done);
        if (count === 0) break;
        done += count;
      }
    } catch (error) {
      throw hostError(error, `Cannot read ${length} bytes at ${offset} of "${this.path}"`, { path: this.path, offset });
    }
    if (done < length) target.fill(0, at + done, at + length);
    return done;
  }

  prefetch(offset: number, length: number): void {
    startReading(this.fd, offset, length);
  }

  locate(offset: number, place: HostPlace): boolean {
    place.fd = this.fd;
    place.offset = offset;
    return true;
  }

  write(offset: number, source: Uint8Array, at: number, length: number, _event: StorageEvent): void {
    let done = 0;
    try {
      while (done < length) done += writeAt(this.fd, source, at + done, length - done, offset + done);
    } catch (error) {
      throw hostError(error, `Cannot write ${length} bytes at ${offset} of "${this.path}"`, {
        path: this.path,
        offset,
      });
    }
  }

  punch(offset: number, length: number, event: StorageEvent): void {
    const inside = Math.min(length, this.size() - offset);
    if (inside <= 0) return;
    try {
      if (this.isBlockDevice) zeroRange(this.fd, offset, inside);
      else fallocate(this.fd, 'punch-hole', offset, inside);
      return;
    } catch (error) {
      const name = errnoNameOf(error);
      if (name !== 'EOPNOTSUPP' && name !== 'EINVAL' && name !== 'ENOSYS') {
        throw hostError(error, `Cannot zero ${inside} bytes at ${offset} of "${this.path}"`, {
          path: this.path,
          offset,
        });
      }
    }
    // The host cannot punch (or the device wants other alignment): zeroes keep the promise, the space stays taken.
    for (let done = 0; done < inside; done += ZEROES.length) {
      this.write(offset + done, ZEROES, 0, Math.min(ZEROES.length, inside - done), event);
    }
  }

  allocate(offset: number, length: number, _event: StorageEvent): void {
    if (this.isBlockDevice || length === 0) return;
    try {
      fallocate(this.fd, 'allocate', offset, length);
    } catch (error) {
      const name = errnoNameOf(error);
      if (name !== 'EOPNOTSUPP' && name !== 'ENOSYS') {
        throw hostError(error, `Cannot allocate ${length} bytes at ${offset} of "${this.path}"`, {
          path: this.path,
          offset,
        });
      }
      // Without fallocate only the size can be promised.
      if (this.size() < offset + length) this.truncate(offset + length, _event);
    }
  }

  size(): number {
    try {
      return this.isBlockDevice ? blockDeviceSize(this.fd) : fs.fstatSync(this.fd).size;
    } catch (error) {
      throw hostError(error, `Cannot read the size of "${this.path}"`, { path: this.path });
    }
  }

  truncate(size: number, _event: StorageEvent): void {
    if (this.isBlockDevice) {
      if (size <= this.size()) return;
      throw new BlockError('NO_SPACE', `Cannot grow "${this.path}" to ${size} bytes: the device has ${this.size()}`, {
        path: this.path,
      });
    }
    try {
      fs.ftruncateSync(this.fd, size);
    } catch (error) {
      throw hostError(error, `Cannot set the length of "${this.path}" to ${size} bytes`, { path: this.path });
    }
  }

  sync(_event: StorageEvent): void {
    try {
      longWait(() => fs.fdatasyncSync(this.fd));
    } catch (error) {
      throw hostError(error, `Cannot flush "${this.path}"`, { path: this.path });
    }
  }

  nextData(offset: number): number {
    if (this.isBlockDevice) return offset;
    try {
      return seekData(this.fd, offset) ?? this.size();
    } catch {
      return offset; // A host without SEEK_DATA: all of it is data.
    }
  }

  nextHole(offset: number): number {
    if (this.isBlockDevice) return this.size();
    try {
      return seekHole(this.fd, offset) ?? this.size();
    } catch {
      return this.size();
    }
  }

  allocatedBytes(): number {
    return this.isBlockDevice ? this.size() : fs.fstatSync(this.fd).blocks * 512;
  }

  describe(): FileDescriptor {
    return { kind: 'file', fd: this.fd, path: this.path, readOnly: this.readOnly, isBlockDevice: this.isBlockDevice };
  }

  close(): void {
    try {
      fs.closeSync(this.fd);
    } catch (error) {
      throw hostError(error, `Cannot close "${this.path}"`, { path: this.path });
    }
  }
}
