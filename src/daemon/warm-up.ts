/**
 * A worker's code is compiled only after it has run for a while: the first thousands of writes take twice as long as those that follow.
 * While nobody asks for anything after mounting, the worker that will be asked first writes to an image in memory, of the format of
 * the one that is mounted (docs/adr/0017-warm-up.md).
 */
import * as fs from 'node:fs';
import { attachImage, type ImageDescriptor, type OpenImage, openImage } from '../block/open';
import { formatByName } from '../formats/registry';
import { Practice } from '../fuse/kernel/practice';
import { logOf } from '../log';
import { createTableCache, TABLE_CACHE_MIN_BYTES } from '../shared/table-cache';
import { FileStorage } from '../storage/file';
import { memfdCreate } from '../system/memfd';
import { GIB, KIB, MIB, SECTOR_SIZE } from '../units';
import { createFileSystem } from '../vfs/image-filesystem';
import { buildTree } from '../vfs/tree';

/** Requests until all that matters is compiled; half as many leave a tenth of the speed. */
const REQUESTS = 3000;
/** The smallest that all formats have, so that the image takes no more than REQUESTS of them, 12 MiB. */
const CLUSTER = 4 * KIB;
/** Half of the writes go behind this: V8 compiles code again when numbers first become larger than 31 bits. */
const FAR = 8 * GIB;
const DISK = FAR + 16 * MIB;
const REQUESTS_PER_FSYNC = 64;

/** So many requests of others, and there is work: it compiles what it needs by itself. To mount and to look around takes fewer. */
const BUSY_REQUESTS = 64;

/** Threads of the image in memory: one opens it, one uses it, though here both are this one. */
const THREADS = 2;

const log = logOf('daemon:warm-up');

/**
 * What a worker does while nobody asks, as `KernelServeOptions` wants it; undefined when there is nothing to warm up for.
 * @param mount counts its requests
 */
export function warmUpWhileIdle(
  images: readonly (ImageDescriptor | undefined)[],
  mount: { readonly requests: number },
): (() => boolean) | undefined {
  const format = formatToWarmUp(images);
  // A log would be full of requests that nobody made.
  if (format === undefined || logOf('fuse:kernel').enabled) return undefined;
  const warmUp = new WarmUp(format);
  return () => {
    try {
      if (mount.requests < BUSY_REQUESTS && warmUp.step()) return true;
    } catch (error) {
      // A loss of speed, and nobody's data.
      log('%s: %s', format, error);
    }
    warmUp.close();
    return false;
  };
}

/** The format to practise with: of the first image that can be written and allocates; undefined when there is none. */
export function formatToWarmUp(images: readonly (ImageDescriptor | undefined)[]): string | undefined {
  for (const image of images) {
    if (image === undefined) continue;
    const { header, storage } = image.layers[0];
    const { capabilities, create } = formatByName(header.format);
    const isWritable = storage.kind === 'file' && !storage.readOnly;
    if (isWritable && capabilities.clusters && capabilities.backing && create !== undefined) return header.format;
  }
  return undefined;
}

export class WarmUp {
  private practice: Practice | undefined;
  private image: OpenImage | undefined;
  private readonly descriptors: number[] = [];
  private done = 0;

  /** @param format as `formatToWarmUp` gives it */
  constructor(private readonly format: string) {}

  /** The next request, or before the first one the image. @returns false when that was the last one */
  step(): boolean {
    if (this.practice === undefined) this.practice = this.open();
    else this.ask(this.practice, this.done++);
    return this.done < REQUESTS;
  }

  /** Nothing is left of it. */
  close(): void {
    this.practice?.close();
    this.image?.close();
    for (const fd of this.descriptors.splice(0)) fs.closeSync(fd);
    this.practice = this.image = undefined;
  }

  /** An overlay, because its way is the longer one: partial writes read what is below. */
  private open(): Practice {
    const { format } = this;
    const [backing, overlay] = [this.createFile(), this.createFile()];
    backing.truncate(DISK, 'create');
    const options = { size: DISK, clusterSize: CLUSTER, backing: { name: backing.path, format: 'raw' } };
    formatByName(format).create?.(overlay, options);
    const { path } = overlay;
    this.image = openImage(path, {
      readOnly: false,
      format,
      backing: 'any',
      threads: THREADS,
      cache: createTableCache(TABLE_CACHE_MIN_BYTES),
      imageId: 0,
      lock: false,
    });
    const node = attachImage(this.image.describe(), THREADS - 1);
    const layers = [{ path, format, readOnly: false, mode: 0, mtimeMs: 0 }];
    const plan = buildTree([{ name: format, layers }], { singleImage: true, mountedMs: 0 });
    const fileSystem = createFileSystem(plan, [node], { growable: false, readOnly: false, uid: 0, gid: 0 });
    return new Practice(fileSystem, fileSystem.lookup(fileSystem.rootIno, 'disk'), CLUSTER);
  }

  private createFile(): FileStorage {
    const fd = memfdCreate('imagefs warm-up');
    this.descriptors.push(fd);
    return new FileStorage({ kind: 'file', fd, path: `/proc/self/fd/${fd}`, readOnly: false, isBlockDevice: false });
  }

  /** Of eight requests five write a new cluster, one a part of a new one, one a part of an old one; one reads. */
  private ask(practice: Practice, number: number): void {
    const cluster = (number % 2) * FAR + Math.floor(number / 2) * CLUSTER;
    const kind = number % 8;
    if (kind < 5) practice.write(cluster, CLUSTER);
    else if (kind === 5) practice.write(cluster + SECTOR_SIZE, SECTOR_SIZE);
    else if (kind === 6) practice.write(cluster - 2 * CLUSTER, SECTOR_SIZE);
    else practice.read(cluster - 2 * CLUSTER, CLUSTER);
    if (number % REQUESTS_PER_FSYNC === 0) practice.fsync();
  }
}
