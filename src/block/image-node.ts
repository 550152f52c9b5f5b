/** An opened image as a `BlockNode`: bounds, read-only, the way down the backing chain, statistics. */
import type { Below, Layer } from '../cluster/layer';
import { BlockError } from '../errors';
import type { ImageHeader } from '../formats/format';
import { formatNameOf, PROBE_BYTES } from '../formats/registry';
import type { HostPlace, Storage } from '../storage/storage';
import type { BlockNode, BlockNodeStatistics, BlockStatus, WriteOptions } from './node';

export class ImageNode implements BlockNode, Below {
  readonly format: string;
  readonly path: string;
  readonly readOnly: boolean;
  readonly clusterSize: number;
  private readonly guessedRaw: boolean;

  constructor(
    readonly header: ImageHeader,
    readonly storage: Storage,
    readonly layer: Layer,
    readonly backing: ImageNode | undefined,
    private readonly data?: Storage,
  ) {
    this.format = header.format;
    this.path = storage.path;
    this.readOnly = layer.readOnly;
    this.clusterSize = header.clusterSize;
    this.guessedRaw = header.format === 'raw' && header.probed === true;
  }

  size(): number {
    return this.layer.size();
  }

  read(offset: number, target: Uint8Array, at: number, length: number): void {
    if (length === 0) return;
    this.checkBounds('read', offset, length);
    try {
      this.layer.read(offset, target, at, length);
    } catch (error) {
      this.layer.state.count('failedReadOperations', 1);
      throw error;
    }
    this.countReads(1, length);
  }

  prefetch(offset: number, length: number): void {
    const inside = Math.min(length, this.size() - offset);
    if (inside > 0) this.layer.prefetch(offset, inside);
  }

  holding(body: () => void): void {
    this.layer.holding(body);
  }

  locate(offset: number, length: number, place: HostPlace): boolean {
    return length > 0 && offset + length <= this.size() && this.layer.locate(offset, length, place);
  }

  locateBelow(guest: number, length: number, place: HostPlace): boolean {
    return this.readOnly && this.locate(guest, length, place);
  }

  countReads(operations: number, bytes: number): void {
    this.layer.state.countReads(operations, bytes);
  }

  readBelow(guest: number, target: Uint8Array, at: number, length: number): void {
    const inside = Math.max(0, Math.min(length, this.size() - guest));
    if (inside > 0) this.layer.read(guest, target, at, inside);
    if (inside < length) target.fill(0, at + inside, at + length);
  }

  write(offset: number, source: Uint8Array, at: number, length: number, options?: WriteOptions): void {
    this.checkWritable();
    if (length === 0) return;
    this.checkBounds('write', offset, length);
    const compressed = options?.compressed === true;
    if (compressed) this.checkWholeClusters(offset, length);
    try {
      const write = (): void => this.layer.write(offset, source, at, length);
      if (compressed) this.layer.writeCompressed(offset, source, at, length);
      else if (this.guessedRaw && offset < PROBE_BYTES)
        this.undisguised(offset, source.subarray(at, at + length), write);
      else write();
    } catch (error) {
      this.layer.state.count('failedWriteOperations', 1);
      throw error;
    }
    this.layer.state.countWrite(length, offset + length);
  }

  writeZeroes(offset: number, length: number): void {
    this.checkWritable();
    if (length === 0) return;
    this.checkBounds('write', offset, length);
    const zero = (): void => this.layer.writeZeroes(offset, length);
    // Zeroes, too, can make a header: of a version that is none they make one that is.
    if (this.guessedRaw && offset < PROBE_BYTES)
      this.undisguised(offset, new Uint8Array(Math.min(length, PROBE_BYTES)), zero);
    else zero();
    this.layer.state.count('unmapOperations', 1);
    this.layer.state.count('unmapBytes', length);
  }

  allocate(offset: number, length: number): void {
    this.checkWritable();
    if (length === 0) return;
    this.checkBounds('allocate', offset, length);
    this.layer.allocate(offset, length);
  }

  flush(): void {
    if (this.readOnly) return;
    try {
      this.layer.flush();
    } catch (error) {
      this.layer.state.count('failedFlushOperations', 1);
      throw error;
    }
    this.layer.state.count('flushOperations', 1);
  }

  resize(size: number): void {
    this.checkWritable();
    if (!Number.isSafeInteger(size) || size % 512 !== 0) {
      throw new BlockError('OUT_OF_BOUNDS', `Cannot resize "${this.path}" to ${size} bytes: not a multiple of 512`, {
        path: this.path,
      });
    }
    if (size < this.size()) {
      throw new BlockError('OUT_OF_BOUNDS', `Cannot shrink "${this.path}" from ${this.size()} to ${size} bytes`, {
        path: this.path,
      });
    }
    this.layer.resize(size);
  }

  status(offset: number, length: number): BlockStatus {
    this.checkBounds('map', offset, length);
    let limit = length;
    let depth = 0;
    let place: number | undefined;
    for (let node: ImageNode = this; ; node = node.backing, depth++) {
      if (offset >= node.size()) {
        // Past the end of a short backing file: zeroes. As qemu-img has it, the last layer that is long enough says so.
        const status = { length: limit, depth: depth - 1, present: false, zero: true, data: false };
        return place === undefined ? status : { ...status, offset: place };
      }
      limit = Math.min(limit, node.size() - offset);
      const own = node.ownStatus(offset, limit);
      if (own.present || node.backing === undefined) return { ...own, depth };
      limit = own.length;
      place = own.offset;
    }
  }

  layerStatus(offset: number, length: number): BlockStatus {
    this.checkBounds('map', offset, length);
    return this.ownStatus(offset, length);
  }

  allocatedBytes(): number {
    return this.storage.allocatedBytes() + (this.data?.allocatedBytes() ?? 0);
  }

  statistics(): BlockNodeStatistics {
    return this.layer.state.counters();
  }

  private ownStatus(offset: number, length: number): BlockStatus {
    const status = this.layer.status(offset, length);
    if (status.kind === 'data') {
      const zero = status.hole === true;
      return { length: status.length, depth: 0, present: true, zero, data: true, offset: status.offset };
    }
    if (status.kind === 'compressed')
      return { length: status.length, depth: 0, present: true, zero: false, data: true, compressed: true };
    const none = { length: status.length, depth: 0, present: status.kind === 'zero', zero: true, data: false };
    return status.offset === undefined ? none : { ...none, offset: status.offset };
  }

  /**
   * A disk that was taken for raw because it looked like nothing else must not come to look like something else: whoever
   * opens it next would follow a header that the guest wrote, and the file names in it. One such write at a time: two that
   * look harmless may make a header together.
   */
  private undisguised(offset: number, content: Uint8Array, write: () => void): void {
    this.layer.state.metaMutex.with(() => {
      const sector = new Uint8Array(Math.min(PROBE_BYTES, this.size()));
      this.layer.read(0, sector, 0, sector.length);
      sector.set(content.subarray(0, sector.length - offset), offset);
      const name = formatNameOf(sector);
      if (name !== 'raw') {
        throw new BlockError(
          'DENIED',
          `Cannot write to "${this.path}": its format was guessed as raw, and its first sector would look like ${name}; open it with --format raw`,
          { path: this.path, offset },
        );
      }
      write();
    });
  }

  protected checkBounds(action: string, offset: number, length: number): void {
    if (offset >= 0 && length > 0 && offset + length <= this.size()) return;
    throw new BlockError(
      'OUT_OF_BOUNDS',
      `Cannot ${action} ${length} bytes at ${offset} of "${this.path}": the disk ends at ${this.size()}`,
      { path: this.path, offset },
    );
  }

  private checkWholeClusters(offset: number, length: number): void {
    const { path, clusterSize } = this;
    const end = offset + length;
    // Layers without clusters refuse by themselves.
    if (clusterSize === 0 || (offset % clusterSize === 0 && (end % clusterSize === 0 || end === this.size()))) return;
    const message = `Cannot write ${length} bytes at ${offset} of "${path}" compressed: only whole clusters of ${clusterSize} bytes can be`;
    throw new BlockError('OUT_OF_BOUNDS', message, { path, offset });
  }

  private checkWritable(): void {
    if (!this.readOnly) return;
    throw new BlockError('READ_ONLY', `Cannot write to "${this.path}": it is open read-only`, { path: this.path });
  }
}
