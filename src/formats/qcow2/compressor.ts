/**
 * Places for compressed clusters: one stream behind the other, byte by byte, in clusters of the image file. The reference
 * count of such a cluster says how many streams lie in it, in whole or in part.
 *
 * Only the cluster that was begun last takes more streams, and only until one of its streams is given up or the image is
 * closed: a cluster whose streams are all given up is punched, which must not meet a new one.
 */
import { BlockError } from '../../errors';
import type { ImageState } from '../../shared/image-state';
import type { TableSlice } from '../../shared/table-cache';
import type { Compressor, HostOffset, Reservation } from '../driver';
import { deflateCluster } from './compressed';
import { compressedLimit } from './entry';
import type { Qcow2Header } from './layout';
import type { Refcounts } from './refcounts';
import type { Qcow2State } from './state';

export class Qcow2Compressor implements Compressor {
  private readonly limit: number;

  constructor(
    private readonly header: Qcow2Header,
    private readonly path: string,
    private readonly state: ImageState,
    private readonly own: Qcow2State,
    private readonly refcounts: Refcounts,
  ) {
    this.limit = compressedLimit(Math.log2(header.clusterSize));
  }

  compress(cluster: Uint8Array): Uint8Array | undefined {
    return deflateCluster(this.header.compressionType, cluster);
  }

  reserve(bytes: number): Reservation | TableSlice | 'prepare' {
    const { own, refcounts } = this;
    const { clusterSize } = this.header;
    const end = own.streamEnd;
    const open = Math.floor(end / clusterSize);
    let room = end === 0 ? 0 : (open + 1) * clusterSize - end;
    if (room > 0) {
      const count = refcounts.get(open);
      if (typeof count === 'object') return count;
      if (count >= refcounts.max) room = 0;
    }
    if (bytes <= room) return refcounts.change(open, 1, 1) ?? this.taken(end, bytes);
    this.checkLimit();
    const place = refcounts.allocate(1);
    if (place === 'prepare' || 'level' in place) return place;
    const joins = room > 0 && place.offset === end + room;
    // The table of the counts may have left the cache meanwhile: then the rest of the cluster stays empty.
    if (joins && refcounts.change(open, 1, 1) === undefined) return this.taken(end, bytes);
    return this.taken(place.offset, bytes);
  }

  private checkLimit(): void {
    const { path, limit } = this;
    if (this.state.fileEnd + this.header.clusterSize <= limit) return;
    const message = `Cannot write compressed data to qcow2 image "${path}": entries can only name places below ${limit}`;
    throw new BlockError('LIMIT_EXCEEDED', message, { path });
  }

  private taken(offset: HostOffset, bytes: number): Reservation {
    const end = offset + bytes;
    this.own.streamEnd = end % this.header.clusterSize === 0 ? 0 : end;
    return { offset, length: bytes, fresh: false };
  }
}
