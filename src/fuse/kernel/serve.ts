/**
 * The loop of a worker thread: one request after the other, each served to its end. Read this file for the hot path; `operations.ts`
 * has the rest.
 *
 * READ costs three system calls (the request, the image, the reply) and creates hardly any garbage: the file system reads straight into the
 * reply behind its header, and one write(2) sends both. While there is a queue, several READs share the second and the third (`read-batch.ts`).
 */
import { constants } from 'node:os';
import { logOf } from '../../log';
import { onLongWait } from '../../system/long-wait';
import type { FileSystem, HostPlace } from '../../vfs/filesystem';
import { errnoOf } from '../errno';
import { type KernelServeOptions, MAX_REQUEST } from '../session';
import { ASIDE_MAX, Channel, ENDED, NOTHING } from './channel';
import { encodeWritten } from './codec';
import {
  serveCopyRange,
  serveFallocate,
  serveFsync,
  serveGetAttributes,
  serveInit,
  serveLookup,
  serveMakeDirectory,
  serveOpen,
  serveOpenDirectory,
  serveReadDirectory,
  serveRelease,
  serveRemoveDirectory,
  serveRename,
  serveRename2,
  serveSeek,
  serveSetAttributes,
  serveStatistics,
} from './operations';
import { IN, IO_IN, O_DSYNC, OPCODE, OUT_HEADER_BYTES, RENAME_IN } from './protocol';
import { ReadBatch } from './read-batch';
import { createSeats, DISK, Seats, SMALL_READ } from './seats';

const log = logOf('fuse:kernel');

const { EFBIG, EINVAL, EIO, ENOSYS, ENOTTY, EPERM, EROFS } = constants.errno;

/**
 * Serves requests on this thread until the mount is gone; then returns. Blocks in read(2) in between. Any number of threads may do so
 * with one descriptor, each with its own `fileSystem` over the same shared state.
 *
 * @param fd as `mountKernel` returned it; stays open
 */
export function serveKernel(fd: number, fileSystem: FileSystem, options: KernelServeOptions): void {
  new KernelServer(fd, fileSystem, options).run();
}

export class KernelServer {
  private readonly channel: Channel;
  private readonly seats: Seats;
  private readonly fileSystem: FileSystem;
  private readonly options: KernelServeOptions;
  private readonly trace = log.enabled;
  /** Opened with the first queue. */
  private batch: ReadBatch | 'unavailable' | undefined;
  /** As `serveQueue` returns it. */
  private left = NOTHING;

  constructor(fd: number, fileSystem: FileSystem, options: KernelServeOptions) {
    this.seats = new Seats(options.seats ?? createSeats(1, 1));
    this.channel = new Channel(fd, this.seats, options.idle);
    this.fileSystem = fileSystem;
    this.options = options;
  }

  run(): void {
    const { channel, seats } = this;
    seats.sit();
    onLongWait({ begins: (forOthers) => seats.stepAside(forOthers, channel), ends: () => seats.stepBack() });
    try {
      while (this.serveNext()) seats.yield();
    } finally {
      // The next parked worker finds out that the mount is gone.
      onLongWait(undefined);
      seats.stand();
      this.close();
    }
  }

  /** Waits for a request and serves it, or several that are there together. @returns false when the mount is gone */
  serveNext(): boolean {
    const { channel, seats } = this;
    let length = seats.disk === DISK.NONE && channel.expectsSeveral() ? this.serveQueue() : NOTHING;
    if (length === NOTHING) length = channel.receive();
    if (length === ENDED) return false;
    if (length === NOTHING) return true;
    if (seats.disk !== DISK.NONE && this.isSmallRead() && channel.canReceiveMore) this.serveReads(length);
    else this.serve(length);
    return true;
  }

  /** The shared descriptor stays open. */
  close(): void {
    this.channel.close();
    if (this.batch !== 'unavailable') this.batch?.close();
  }

  /**
   * A small READ, while reads wait for the disk. If all workers are busy, this one also takes those that are there, has the host fetch
   * what they need all at once, and then serves one after the other: a disk has as many reads at a time as programs make, not as there
   * are workers. The first request that is something else ends that, and is served last, in its turn.
   *
   * The requests in its hands have begun nothing and hold no lock of ours, so only their callers wait for them, and the kernel where it is to
   * forget a page that one of them reads; whoever has asked it to gives up after a while (`daemon/bell.ts`).
   */
  private serveReads(first: number): void {
    const { channel, seats } = this;
    seats.startReading();
    let length = first;
    for (let taken = 1; length > 0; taken++) {
      const isRead = this.isSmallRead();
      const more = isRead && taken < ASIDE_MAX && seats.nobodyWaits;
      if (isRead && (more || taken > 1)) this.prefetch();
      channel.putAside(length);
      length = more ? channel.receiveMore() : NOTHING;
    }
    let reads = 0;
    for (length = channel.resume(); length > 0 && this.isSmallRead(); length = channel.resume()) {
      this.serve(length);
      reads++;
    }
    seats.endReading(reads);
    if (length > 0) this.serve(length);
  }

  /**
   * While there is a queue: takes what is there, and makes and answers small READs of one file together. The first request that is
   * something else ends that; it is served after them, in its turn.
   * @returns the length of that request, which is in the channel, as `Channel.receive`; NOTHING: there is none
   */
  private serveQueue(): number {
    const { channel, seats } = this;
    if (!channel.canReceiveMore) return NOTHING;
    this.batch ??= ReadBatch.open() ?? 'unavailable';
    if (this.batch === 'unavailable') return NOTHING;
    this.left = channel.receiveMore();
    const isEmpty = this.left === NOTHING;
    let count = 0;
    if (this.left > 0) seats.countRequests(1);
    if (this.left > 0 && this.isSmallRead()) count = this.serveBatch(this.batch);
    channel.tookTogether(count, isEmpty);
    return this.left;
  }

  /**
   * The READ in the channel, and those that follow it, if their bytes can be had without the engine.
   * @returns how many were answered together
   */
  private serveBatch(batch: ReadBatch): number {
    const { channel, fileSystem } = this;
    const node = channel.u64(IN.NODE);
    try {
      fileSystem.holding(node, () => this.gather(batch, node));
    } catch (error) {
      // What is wrong with the file, the READ itself will meet and tell. Of a ring that fails nobody knows what it still does.
      if (!batch.isEmpty) throw error;
      log('gather: %s', error);
    }
    const answered = batch.count - batch.unanswered;
    if (batch.unanswered > 0) this.serveUnanswered(batch);
    else channel.dropAside();
    batch.clear();
    return answered;
  }

  /** All that `holding` holds places for: nothing here waits for other threads, or for a request. */
  private gather(batch: ReadBatch, node: number): void {
    const { channel, seats } = this;
    while (this.left > 0 && this.isSmallRead() && channel.u64(IN.NODE) === node && this.locate(node, batch.place)) {
      batch.push(channel);
      channel.putAside(this.left);
      this.left = batch.isFull ? NOTHING : channel.receiveMore();
    }
    if (batch.isEmpty) return;
    const began = seats.startReads();
    batch.run();
    seats.endReads(began);
    seats.countRequests(batch.count - (this.left > 0 ? 0 : 1));
    this.fileSystem.countReads(node, batch.count - batch.unanswered, batch.answeredBytes);
  }

  /** Reads that came out short or failed: as any other, so that somebody tells what is wrong. */
  private serveUnanswered(batch: ReadBatch): void {
    const { channel } = this;
    if (this.left > 0) channel.putAside(this.left);
    for (let index = 0; index < batch.count; index++) {
      const length = channel.resume();
      if (batch.isAnswered(index)) channel.leaveUnanswered();
      else this.serve(length);
    }
    this.left = this.left > 0 ? channel.resume() : this.left;
  }

  private locate(node: number, place: HostPlace): boolean {
    const { channel } = this;
    const offset = channel.u64(IO_IN.OFFSET);
    if (offset > Number.MAX_SAFE_INTEGER - MAX_REQUEST) return false;
    try {
      return this.fileSystem.locate(node, offset, channel.u32(IO_IN.SIZE), place);
    } catch (error) {
      log('locate: %s', error);
      return false;
    }
  }

  private isSmallRead(): boolean {
    const { channel } = this;
    return channel.u32(IN.OPCODE) === OPCODE.READ && channel.u32(IO_IN.SIZE) <= SMALL_READ;
  }

  /** The host may fetch what the READ in the channel needs. */
  private prefetch(): void {
    const { channel } = this;
    const offset = channel.u64(IO_IN.OFFSET);
    try {
      if (offset > Number.MAX_SAFE_INTEGER - MAX_REQUEST) return;
      this.fileSystem.prefetch(channel.u64(IN.NODE), offset, channel.u32(IO_IN.SIZE));
    } catch (error) {
      // The READ itself will meet the same and tell it.
      log('prefetch: %s', error);
    }
  }

  private serve(length: number): void {
    const { channel } = this;
    const opcode = channel.u32(IN.OPCODE);
    if (this.trace) log('opcode %d node %d length %d', opcode, channel.u64(IN.NODE), length);
    try {
      if (opcode === OPCODE.READ) this.read();
      else if (opcode === OPCODE.WRITE) this.write(length);
      else this.serveOther(opcode, length);
    } catch (error) {
      channel.answerFailure(errnoOf(error));
    }
    channel.finish();
  }

  private read(): void {
    const { channel, seats } = this;
    const offset = channel.u64(IO_IN.OFFSET);
    const size = channel.u32(IO_IN.SIZE);
    if (size > MAX_REQUEST) {
      channel.answerError(EINVAL);
      return;
    }
    const began = seats.startRead(size);
    // Past what a number holds exactly there is no disk, only its end.
    const got =
      offset > Number.MAX_SAFE_INTEGER - MAX_REQUEST
        ? 0
        : this.fileSystem.read(
            channel.u64(IN.NODE),
            channel.u64(IO_IN.HANDLE),
            offset,
            channel.reply,
            OUT_HEADER_BYTES,
            size,
          );
    seats.endRead(began);
    channel.answer(got);
  }

  private write(length: number): void {
    const { channel } = this;
    const offset = channel.u64(IO_IN.OFFSET);
    const size = channel.u32(IO_IN.SIZE);
    if (size > length - IO_IN.DATA) {
      channel.answerError(EIO);
      return;
    }
    if (offset > Number.MAX_SAFE_INTEGER - MAX_REQUEST) {
      channel.answerError(EFBIG);
      return;
    }
    // With direct I/O the kernel sends no FSYNC for O_SYNC, O_DSYNC and RWF_DSYNC: this flag is all we ever learn of them.
    const sync = (channel.u32(IO_IN.FLAGS) & O_DSYNC) !== 0;
    const written = this.fileSystem.write(
      channel.u64(IN.NODE),
      channel.u64(IO_IN.HANDLE),
      offset,
      channel.request,
      IO_IN.DATA,
      size,
      sync,
    );
    channel.answer(encodeWritten(channel.reply, OUT_HEADER_BYTES, written));
  }

  private serveOther(opcode: number, length: number): void {
    const { channel, fileSystem, options } = this;
    switch (opcode) {
      case OPCODE.INIT:
        serveInit(channel, options, length);
        break;
      case OPCODE.LOOKUP:
        serveLookup(channel, fileSystem, length);
        break;
      case OPCODE.GETATTR:
        serveGetAttributes(channel, fileSystem);
        break;
      case OPCODE.SETATTR:
        serveSetAttributes(channel, fileSystem);
        break;
      case OPCODE.OPEN:
        serveOpen(channel, fileSystem, options);
        break;
      case OPCODE.RELEASE:
        serveRelease(channel, fileSystem);
        break;
      case OPCODE.FSYNC:
        serveFsync(channel, fileSystem);
        break;
      case OPCODE.OPENDIR:
        serveOpenDirectory(channel, fileSystem);
        break;
      case OPCODE.READDIR:
        serveReadDirectory(channel, fileSystem);
        break;
      case OPCODE.STATFS:
        serveStatistics(channel, fileSystem);
        break;
      case OPCODE.FALLOCATE:
        serveFallocate(channel, fileSystem);
        break;
      case OPCODE.LSEEK:
        serveSeek(channel, fileSystem);
        break;
      case OPCODE.COPY_FILE_RANGE:
        serveCopyRange(channel, fileSystem);
        break;
      case OPCODE.MKDIR:
      case OPCODE.RMDIR:
      case OPCODE.RENAME:
      case OPCODE.RENAME2:
        this.changeDirectory(opcode, length);
        break;
      default:
        this.serveTrivial(opcode);
    }
  }

  /** Snapshots are directories: they are made, removed and renamed as such. */
  private changeDirectory(opcode: number, length: number): void {
    const { channel, fileSystem } = this;
    if (this.options.readOnly) channel.answerError(EROFS);
    else if (opcode === OPCODE.MKDIR) serveMakeDirectory(channel, fileSystem, length);
    else if (opcode === OPCODE.RMDIR) serveRemoveDirectory(channel, fileSystem, length);
    else if (opcode === OPCODE.RENAME) serveRename(channel, fileSystem, RENAME_IN.NAMES, length);
    else serveRename2(channel, fileSystem, length);
  }

  /** Operations whose answer depends on nothing. */
  private serveTrivial(opcode: number): void {
    const { channel } = this;
    switch (opcode) {
      // No reply. Node ids are inode numbers and stay valid without being counted. An interrupted request is served to its end, which
      // is near as a rule; its reply is then refused with ENOENT.
      case OPCODE.FORGET:
      case OPCODE.BATCH_FORGET:
      case OPCODE.INTERRUPT:
      case OPCODE.NOTIFY_REPLY:
        channel.leaveUnanswered();
        return;
      // FLUSH is close(2), not a flush: a disk promises that data is safe after fsync(2), and every `dd`, `losetup -d` or mere look at a
      // file would otherwise pay for a full flush.
      case OPCODE.FLUSH:
      case OPCODE.RELEASEDIR:
      case OPCODE.FSYNCDIR:
      case OPCODE.DESTROY:
        channel.answer(0);
        return;
      // Else the tree is fixed. On a read-only mount the kernel itself says EROFS first, in most cases.
      case OPCODE.CREATE:
      case OPCODE.MKNOD:
      case OPCODE.UNLINK:
      case OPCODE.SYMLINK:
      case OPCODE.LINK:
        channel.answerError(this.options.readOnly ? EROFS : EPERM);
        return;
      case OPCODE.READLINK:
        channel.answerError(EINVAL);
        return;
      case OPCODE.IOCTL:
        channel.answerError(ENOTTY);
        return;
      // ACCESS, xattrs, locks, POLL and whatever comes: the kernel does it itself or tells its caller, and does not ask again.
      default:
        channel.answerError(ENOSYS);
    }
  }
}
