import { defineConfig } from "vite";

export default defineConfig({
  // The binary embeds what is built; names carry a hash, so browsers may keep them.
  build: { outDir: "dist", emptyOutDir: true, chunkSizeWarningLimit: 800 },
});
