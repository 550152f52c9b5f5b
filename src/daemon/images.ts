/** All images of a mount, as the daemon's main thread holds them: opened in order, closed together. */
import fs from 'node:fs';
import path from 'node:path';
import type { BlockNode } from '../block/node';
import { type ImageDescriptor, type OpenImage, openImage } from '../block/open';
import { supportsSnapshots } from '../block/snapshots';
import { BlockError, describeHostError } from '../errors';
import { createTableCache } from '../shared/table-cache';
import { modeOfFiles, type TreeImage, type TreeLayer } from '../vfs/tree';
import type { DaemonConfig, ImageSource } from './config';

interface Entry {
  source: ImageSource;
  image?: OpenImage;
  error?: { code: string; message: string };
}

export class MountedImages {
  private constructor(private readonly entries: Entry[]) {}

  /**
   * Opens every image. One that cannot be opened does not stop the others, unless it is the only one.
   * @param threads how many threads will use the images
   */
  static open(config: DaemonConfig, threads: number): MountedImages {
    const cache = createTableCache(config.cacheSize);
    let imageId = 0;
    const entries = config.sources.map((source): Entry => {
      try {
        const image = openImage(source.path, {
          readOnly: config.readOnly,
          ...(source.format === undefined ? {} : { format: source.format }),
          backing: config.backing,
          threads,
          cache,
          imageId,
          lock: true,
          forceShare: config.forceShare,
          shareWrites: config.shareRw,
        });
        imageId = image.nextImageId;
        return { source, image };
      } catch (error) {
        if (config.single || !(error instanceof BlockError)) throw error;
        return { source, error: { code: error.code, message: error.message } };
      }
    });
    return new MountedImages(entries);
  }

  /** One line for each image that could not be opened. */
  get warnings(): string[] {
    return this.entries.flatMap((entry) => (entry.error === undefined ? [] : [entry.error.message]));
  }

  /** This thread's top node of each image, in the order of `treeImages`. */
  get nodes(): (BlockNode | undefined)[] {
    return this.entries.map((entry) => entry.image?.node);
  }

  /** For other threads: `attachImage`. */
  get descriptors(): (ImageDescriptor | undefined)[] {
    return this.entries.map((entry) => entry.image?.describe());
  }

  treeImages(): TreeImage[] {
    return this.entries.map(({ source, image, error }): TreeImage => {
      const name = path.basename(source.path);
      if (image !== undefined) return { name, layers: layersOf(image), snapshots: supportsSnapshots(image.node) };
      return { name, error: error ?? { code: 'IO', message: `Cannot open "${source.path}"` } };
    });
  }

  /** Flushes the writable ones. @returns a line for each failure */
  flush(): string[] {
    return this.forEachImage('flush', (image) => {
      if (!image.node.readOnly) image.node.flush();
    });
  }

  /** Final flush, need-check cleared, locks released. No other thread may use the images. @returns a line for each failure */
  close(): string[] {
    return this.forEachImage('close', (image) => image.close());
  }

  private forEachImage(action: string, act: (image: OpenImage) => void): string[] {
    return this.entries.flatMap(({ source, image }) => {
      try {
        if (image !== undefined) act(image);
        return [];
      } catch (error) {
        return [
          error instanceof BlockError
            ? error.message
            : `Cannot ${action} "${source.path}": ${describeHostError(error)}`,
        ];
      }
    });
  }
}

function layersOf(image: OpenImage): TreeLayer[] {
  const layers: TreeLayer[] = [];
  let node: BlockNode | undefined = image.node;
  for (const { storage, data } of image.describe().layers) {
    if (node === undefined) break;
    // By descriptors: the names may have come to mean other files.
    const files = [storage, data].flatMap((file) => (file?.kind === 'file' ? [fs.fstatSync(file.fd)] : []));
    const mode = modeOfFiles(files, process.getgid?.() ?? 0);
    const mtimeMs = files[0]?.mtimeMs ?? 0;
    layers.push({ path: path.resolve(node.path), format: node.format, readOnly: node.readOnly, mode, mtimeMs });
    node = node.backing;
  }
  return layers;
}
